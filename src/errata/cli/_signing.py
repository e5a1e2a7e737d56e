"""What commands say of signatures: checked before a patch is used, dropped where it is changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import _output

SignedBy = Annotated[
    Path | None,
    typer.Option(
        "--signed-by",
        metavar="PUBKEY",
        help="Exit with 3 unless this key signed the patch and nothing was changed since (see"
        " errata sign). By itself it asks nothing else, and loads no model.",
    ),
]
SignKey = Annotated[
    Path | None,
    typer.Option(
        "--sign", metavar="KEY", help="Sign the patch with this private key (errata sign)."
    ),
]


def check_signed(folder: Path, key: Path, json: bool, alone: bool) -> None:
    """Refuse a patch that was not signed with a key; says that it was.

    Args:
        folder: The patch.
        key: The public key.
        json: Whether a document is printed, where nothing else is asked.
        alone: Whether nothing else is asked.

    Raises:
        GateError: If it is not signed, by another key, or was changed since.
    """
    from errata.patch.signature import check_signature

    found = check_signature(folder, key)
    if json and alone:
        told = {"patch": str(folder), "signed_by": found.key, "made": found.made, "passed": True}
        _output.print_json(told)
    elif not json:
        text = f"{folder}: signed by {found.key} ({key}) on {found.made}, unchanged since"
        _output.out().print(text, soft_wrap=True)


def check_key(key: Path | None) -> None:
    """Refuse a private key that cannot be used, before the work; says so if others may read it."""
    if key is None:
        return
    from errata.patch.signature import open_to_all, private_key

    private_key(key)
    if open_to_all(key):
        _output.note(f"others than you may read {key}: chmod 600 {key}")


def sign(folder: Path, key: Path) -> str:
    """Sign what was written; returns the fingerprint of the key pair."""
    from errata.patch.signature import key_name
    from errata.patch.signature import sign as put

    put(folder, key)
    return key_name(key)


def say_dropped(sources: Iterable[Path | None], out: Path | None) -> None:
    """Say of signed patches that their signatures will not cover what is about to be written.

    Args:
        sources: What it is made of, or what it replaces.
        out: Where it is written; None: nowhere.
    """
    from errata.patch.signature import is_signed

    for source in () if out is None else sources:
        if source is not None and is_signed(source):
            _output.note(
                f"{source} is signed; what is made of it is not: errata sign {out} --key FILE"
            )
