"""An exported adapter on the Hub, with its card."""

from __future__ import annotations

import re
from pathlib import Path

from errata.errors import ConfigError, ErrataError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_name(repo: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        ConfigError: If it is none.
    """
    if not _NAME.fullmatch(repo):
        raise ConfigError(f"--repo {repo}: expected OWNER/NAME", "Example: --repo me/rome-france")


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload an exported folder, and return where it can be looked at.

    The folder stays; a push that fails can be made again. The key is the one of
    `huggingface-cli login` or `HF_TOKEN`, the server that of `HF_ENDPOINT`.

    Args:
        folder: What was exported.
        repo: `OWNER/NAME`; created if it does not exist.
        private: Whether it is created as a private one.

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
        api.upload_folder(
            repo_id=repo, folder_path=str(folder), commit_message="Upload an adapter of errata"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ErrataError(
            f"{repo} could not be pushed: {reason}",
            f"{folder}/ is complete. Log in (hf auth login, or HF_TOKEN) and export again with "
            f"--force, or upload it: hf upload {repo} {folder}",
        ) from None
    return str(made)
