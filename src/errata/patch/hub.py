"""A finished folder on the Hub, with its card: an exported adapter, trained networks."""

from __future__ import annotations

import re
from pathlib import Path

from errata.errors import ConfigError, ErrataError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_name(repo: str, flag: str = "--repo") -> None:
    """Refuse what is no name of a repository.

    Args:
        repo: The name.
        flag: What it was given to, for the message.

    Raises:
        ConfigError: If it is none.
    """
    if not _NAME.fullmatch(repo):
        raise ConfigError(f"{flag} {repo}: expected OWNER/NAME", f"Example: {flag} me/rome-france")


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    what: str = "an adapter of errata",
    again: str = "export again with --force",
) -> str:
    """Upload a finished folder, and return where it can be looked at.

    The folder stays; a push that fails can be made again. The key is the one of
    `huggingface-cli login` or `HF_TOKEN`, the server that of `HF_ENDPOINT`.

    Args:
        folder: What was exported, or trained.
        repo: `OWNER/NAME`; created if it does not exist.
        private: Whether it is created as a private one.
        what: What it holds, for the history of the repository.
        again: How the command is given once more, for the message of a failure.

    Raises:
        ConfigError: If the name is none of a repository.
        ErrataError: If the Hub refuses or cannot be reached.
    """
    check_name(repo)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message=f"Upload {what}")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ErrataError(
            f"{repo} could not be pushed: {reason}",
            f"{folder}/ is complete. Log in (hf auth login, or HF_TOKEN) and {again}, or upload "
            f"it: hf upload {repo} {folder}",
        ) from None
    return str(made)
