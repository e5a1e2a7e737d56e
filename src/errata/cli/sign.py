"""`errata sign`: who made a patch, so that others can tell; and a key pair to sign with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import _output, _signing
from errata.cli._options import JsonFlag
from errata.errors import ConfigError

EXAMPLES = (
    "errata sign --new-key team.key",
    "errata sign rome-france --key team.key",
    "errata verify rome-france --signed-by team.key.pub",
)


def sign(
    patch: Annotated[
        Path | None,
        typer.Argument(help="A patch folder, or an exported adapter.", show_default=False),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", "-k", metavar="FILE",
            help="The private key: one that --new-key made, or of ssh-keygen -t ed25519.",
        ),
    ] = None,
    new_key: Annotated[
        Path | None,
        typer.Option(
            "--new-key", metavar="FILE",
            help="Make a key pair: FILE, which only you can read, and FILE.pub for everyone.",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:  # fmt: skip
    """Sign a patch with a private key (Ed25519), or make a key pair.

    The signature is a file of its own in the folder. It covers the patch as it is: a patch that is
    composed, changed or built again has to be signed again.
    """
    if (patch is None) == (new_key is None) or (patch is None) != (key is None):
        raise ConfigError(
            "expected a patch and --key, or --new-key alone",
            "errata sign PATCH --key FILE, or errata sign --new-key FILE",
        )
    if new_key is not None:
        _new(new_key, json)
        return
    assert patch is not None
    assert key is not None
    from errata.patch.signature import files_of, key_name, read_signature
    from errata.patch.signature import sign as put

    _signing.check_key(key)
    files = files_of(patch)
    own = key_name(key)
    before = _before(patch)
    if before is not None and before != own:
        _output.note(f"the signature of {before} is replaced")
    path = put(patch, key)
    found = read_signature(patch)
    assert found is not None
    if json:
        told = {"patch": str(patch), "signature": str(path), "key": own, "made": found.made}
        _output.print_json({**told, "files": list(files)})
        return
    console = _output.out()
    console.print(f"Signed {patch}/ ({', '.join(files)}) by {own}: {path}", soft_wrap=True)
    console.print(f"Check it: errata verify {patch} --signed-by {key}.pub", soft_wrap=True)


def _before(patch: Path) -> str | None:
    """Return whose signature is there already."""
    from errata.errors import PatchError
    from errata.patch.signature import read_signature

    try:
        found = read_signature(patch)
    except PatchError:
        return "something that cannot be read"
    return None if found is None else found.key


def _new(path: Path, json: bool) -> None:
    from errata.patch.signature import key_name, new_key

    public = new_key(path)
    name = key_name(path)
    if json:
        _output.print_json({"key": name, "private": str(path), "public": str(public)})
        return
    console = _output.out()
    console.print(f"Key pair {name}:", soft_wrap=True)
    console.print(f"  {path}      private; keep it to yourself, and out of git", soft_wrap=True)
    console.print(f"  {public}  public; give it to those who check", soft_wrap=True)
    console.print(f"Next: errata sign PATCH --key {path}", soft_wrap=True)
