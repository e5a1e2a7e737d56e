"""What run folders have to hold for a table: they may have been altered, or be a stranger's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from errata.documents import Document, checked
from errata.errors import RunError
from errata.store.runs import CONFIG, SUMMARY, Run, load_run

HINT = "It was altered, or is of another version; run it again."


class _Editor(Document):
    name: str
    config: dict[str, Any] | None = None


class _Model(Document):
    name: str
    fingerprint: str | None = None


class _Data(Document):
    name: str


class _Protocol(Document):
    regime: str
    top_k: int
    batch: int = 1
    seed: int = 0
    suite: str | None = None


class _Config(Document):
    editor: _Editor
    model: _Model
    data: _Data
    protocol: _Protocol
    suite: dict[str, Any] | None = None


class _Seconds(Document):
    edit: float


class _Bytes(Document):
    patches: int


class _Summary(Document):
    edits: int
    failed: int
    cases: int
    seconds: _Seconds
    bytes: _Bytes | None = None


def read_evaluation(folder: Path) -> Run:
    """Read the run folder of an evaluation.

    Raises:
        RunError: If a file in it is damaged, or a field is not what it should be.
    """
    run = load_run(folder)
    parts: tuple[tuple[str, type[Document], Any], ...] = (
        (CONFIG, _Config, run.config), (SUMMARY, _Summary, run.summary),
    )  # fmt: skip
    for name, kind, document in parts:
        if document is None:
            continue
        try:
            checked(kind, document)
        except ValueError as error:
            raise RunError(f"{folder / name}: {error}", HINT) from None
    return run
