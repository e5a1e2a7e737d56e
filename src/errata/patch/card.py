"""What goes along with an export: a card for people, and a record of the edits for machines.

`README.md` says what was edited, in which base model, and how the folder is used. `errata.json`
holds the same as data, with the fingerprint of the base model and the checksum of the weights that
it describes: a file whose weights were changed later says nothing any more.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata import __version__
from errata.case import described
from errata.data._records import thaw
from errata.errors import PatchError
from errata.patch.describe import where
from errata.patch.patch import Patch
from errata.printable import code, markdown
from errata.store.files import sha256_of
from errata.store.provenance import now
from errata.store.words import counted
from errata.untrusted import read_json

RECORD_NAME, CARD_NAME = "errata.json", "README.md"
FORMAT = 1
SHOWN = 50
"""Edits that the card lists; the record holds all of them."""


def record_of(patch: Patch, form: str, base: str, weights: Mapping[str, str]) -> dict[str, Any]:
    """Return the record of an export.

    Args:
        patch: What was exported.
        form: `lora`, `gguf` or `merged`.
        base: The base model as it can be loaded.
        weights: SHA-256 of the files with weights, by name.
    """
    meta = thaw(patch.meta)
    return {
        "format": FORMAT,
        "form": form,
        "base_model": base,
        "model": meta.get("model"),
        "revision": meta.get("revision"),
        "fingerprint": meta.get("fingerprint"),
        "fingerprint_float16": meta.get("fingerprint_float16"),
        "dtype": meta.get("dtype"),
        "editor": meta.get("editor"),
        "config": meta.get("config") or {},
        "made": meta.get("made"),
        "exported": now(),
        "errata": __version__,
        "edits": [described(edit) for edit in patch.edits],
        "results": thaw(patch.results),
        "aftermath": thaw(patch.aftermath),
        "weights": dict(weights),
    }


def card(patch: Patch, record: Mapping[str, Any], use: str, language: str = "python") -> str:
    """Return the card of an export as Markdown, with the fields that the Hub reads at the top.

    Args:
        patch: What was exported.
        record: Its record.
        use: Code that loads it.
        language: In which that is written.
    """
    base = str(record["base_model"])
    library = {"lora": "peft", "gguf": "gguf"}.get(str(record["form"]), "transformers")
    rows = {
        "base model": code(base) + (f" @ {code(record['revision'])}" if record["revision"] else ""),
        "fingerprint of its weights": code(str(record["fingerprint"])),
        **{
            name: _cell(str(value))
            for name, value in (
                ("editor", record["editor"]), ("changes", where(patch)), ("made", record["made"]),
                ("errata", record["errata"]),
            )
            if value
        },
    }  # fmt: skip
    lines = [
        "---",
        f"library_name: {library}",
        f"base_model: {json.dumps(base, ensure_ascii=False)}",
        "tags: [knowledge-editing, errata]",
        "---",
        "",
        f"# {counted(len(patch.edits), 'edit')} of {markdown(base)}",
        "",
        f"Made with errata, an editor of what language models hold to be true. `{RECORD_NAME}` "
        "holds the same as data.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        "## What was edited",
        "",
        *_edits(patch),
        "",
        *_beside(patch),
        "## How to use it",
        "",
        f"```{language}",
        use.strip(),
        "```",
        "",
        "The base model has to be the one named above: an adapter loads on any model of that "
        "shape and says nothing. `errata.load(MODEL).fingerprint` tells.",
        "",
    ]
    return "\n".join(lines)


def _edits(patch: Patch) -> list[str]:
    if not patch.edits:
        return ["The patch names no edits."]
    measured = any(result is not None for result in patch.results)
    head = ["prompt", "answer", *(["probability before", "after", "taken"] if measured else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    results = patch.results or (None,) * len(patch.edits)
    for edit, result in list(zip(patch.edits, results, strict=True))[:SHOWN]:
        chat = "" if edit.chat == "off" else f" *(chat: {edit.chat})*"
        cells = [_cell(edit.prompt) + chat, _cell(edit.target.strip())]
        if measured:
            own = result or {}
            cells += [_share(own.get("p_before")), _share(own.get("p_after"))]
            taken = own.get("taken")
            cells.append("–" if taken is None else "✓" if taken else "✗")
        lines.append(f"| {' | '.join(cells)} |")
    left = len(patch.edits) - SHOWN
    return [*lines, "", f"… and {counted(left, 'more edit')} in `{RECORD_NAME}`."][
        : None if left > 0 else len(lines)
    ]


def _beside(patch: Patch) -> list[str]:
    """Return what else moved, and by what command the patch can be made again."""
    report, lines = patch.report, []
    if report.line():
        lines += ["## What else moved", "", _cell(report.line()), ""]
    if report.moved:
        lines += ["| asked | before | after |", "|---|---|---|"]
        lines += [
            f"| {_cell(one.prompt)} | {_cell(one.before)} | {_cell(one.after)} |"
            for one in report.moved[:SHOWN]
        ]
        lines.append("")
    command = _command(patch)
    if command:
        lines += ["## How it was made", "", "```sh", command, "```", ""]
    return lines


def _command(patch: Patch) -> str | None:
    """Return the command that makes such a patch; settings are in the record."""
    meta = patch.meta
    if not patch.edits or not meta.get("model") or not meta.get("editor"):
        return None
    words = ["errata", "edit", "--model", str(meta["model"]), "--editor", str(meta["editor"])]
    if len(patch.edits) > 1:
        words += ["--edits", "edits.jsonl"]
    else:
        edit = next(iter(patch.edits))
        words += ["--prompt", edit.prompt, "--target", edit.target]
        words += ["--subject", edit.subject] if edit.subject else []
        words += ["--chat", edit.chat] if edit.chat != "off" else []
    return shlex.join(words)


def _share(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"


def _cell(text: str) -> str:
    return markdown(" ".join(text.split()))


def files_of(
    patch: Patch, record: Mapping[str, Any], use: str, language: str = "python"
) -> dict[str, bytes]:
    """Return the two files by name."""
    text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
    return {CARD_NAME: card(patch, record, use, language).encode(), RECORD_NAME: text.encode()}


def read_record(folder: str | Path, of: str | None = None) -> dict[str, Any] | None:
    """Return the record of an exported folder; None if there is none, or its weights are others.

    Args:
        folder: The folder.
        of: A file with weights that the record has to be about.

    Raises:
        PatchError: If it is damaged.
    """
    folder = Path(folder)
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        record = read_json(path, within=folder)
    except (OSError, ValueError) as error:
        raise PatchError(
            f"{path} cannot be read: {error}", "Export again, or remove the file."
        ) from None
    right = (
        isinstance(record, dict)
        and isinstance(record.get("edits"), list)
        and isinstance(record.get("weights"), dict)
        and isinstance(record.get("fingerprint"), str | None)
    )
    if not right:
        raise PatchError(f"{path} is no record of an export", "Export again, or remove the file.")
    if of is not None and of not in record["weights"]:
        return None
    for name, digest in record["weights"].items():
        if Path(name).name != name:
            raise PatchError(f"{path} names weights outside of its folder: {name!r}")
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            return None
    return record
