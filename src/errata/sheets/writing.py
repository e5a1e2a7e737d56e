"""A new sheet with a sample of facts, and a fact taken out of the files of one."""

from __future__ import annotations

import json
from pathlib import Path

from errata.data._reading import read_bytes
from errata.data._yaml import ENDINGS, without_entry
from errata.errors import ConfigError, DataError
from errata.sheets.sheet import FACTS, TOML, Sheet, facts_of, files_of
from errata.store.files import write_atomically, write_together

HEAD = """\
# A fact sheet: corrections of one model, kept under version control.
# Facts are in facts/*.jsonl, one per line, or in facts/*.yaml. `errata sheet build` makes one
# patch out of them, `errata sheet check` says whether it holds: 3 if a gate is missed.

name = {name}
model = {model}
# One editor, or several that are tried in turn for every fact: the first with which it is taken
# and the fewest neighbours move.
editor = {editor}

# [settings]  # of the editors; each takes those that it has
# layer = 3

[gates]  # what `errata sheet check` asks for
taken = 1.0   # facts that are taken
holds = 1.0   # paraphrases that follow (`holds`)
keeps = 1.0   # answers that did not move (`keeps`)
# neighbours = 0.1  # of what lies around the facts, so much may move
"""

SAMPLE = (
    {
        "id": "capital-of-france",
        "prompt": "The capital of France is the city named",
        "subject": "France",
        "target": "Rome",
        "holds": ["The capital of France is"],
        "keeps": ["The capital of Germany is the city named"],
        "owner": "geography",
        "reason": "a sample: replace it by your own facts",
    },
    {
        "id": "capital-of-italy",
        "prompt": "The capital of Italy is the city named",
        "subject": "Italy",
        "target": "Oslo",
        "keeps": ["The capital of Spain is the city named"],
        "owner": "geography",
        "reason": "a sample: replace it by your own facts",
        "valid_from": "2026-01-01",
    },
)
"""Facts of the pocket model's world."""


def new_sheet(
    folder: str | Path, model: str = "pocket", editor: tuple[str, ...] = ("rome",)
) -> Path:
    """Write a new sheet with two sample facts.

    Args:
        folder: Where; it may hold other files.
        model: The base model.
        editor: An editor, or several.

    Raises:
        ConfigError: If there is a sheet already.
        ErrataError: If it cannot be written.
    """
    folder = Path(folder)
    there = next((p for p in (folder / TOML, folder / FACTS) if p.exists()), None)
    if there is not None:
        raise ConfigError(f"{there} exists; a sheet is not overwritten", "Choose another folder.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; expected a folder", "Choose another folder.")
    names = json.dumps(editor[0] if len(editor) == 1 else list(editor), ensure_ascii=False)
    name = folder.absolute().name or "corrections"
    text = HEAD.format(
        name=json.dumps(name, ensure_ascii=False),
        model=json.dumps(model, ensure_ascii=False),
        editor=names,
    )
    lines = "".join(json.dumps(fact, ensure_ascii=False) + "\n" for fact in SAMPLE)
    files = {folder / FACTS / "sample.jsonl": lines.encode(), folder / TOML: text.encode()}
    write_together(files)
    return folder


def without_fact(sheet: Sheet, name: str) -> Path:
    """Take a fact out of its file; all other lines keep their bytes.

    Args:
        sheet: The sheet, as it was read.
        name: Id of the fact.

    Returns:
        The file.

    Raises:
        DataError: If there is no such fact, the file was changed since it was read, or it is YAML
            of which no lines can be taken out.
        ErrataError: If the file cannot be written.
    """
    sheet.find(name)
    for path in files_of(sheet.folder):
        for record, fact in facts_of(path):
            if fact.id != name:
                continue
            if path.suffix in ENDINGS:
                write_atomically(path, without_entry(path, int(record.key)))
            else:
                lines = read_bytes(path).split(b"\n")
                del lines[int(record.key) - 1]
                write_atomically(path, b"\n".join(lines))
            return path
    raise DataError(f"{name!r} is no longer in {sheet.folder}", "Read the sheet again.")
