"""`errata show`: what a patch, an adapter or a merged checkpoint is, without loading a model."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.case import how_asked
from errata.cli import _output, _sheet_views, _targets, _views
from errata.cli._options import JsonFlag
from errata.errors import PatchError

if TYPE_CHECKING:
    from errata.patch import Patch

EXAMPLES = (
    "errata show rome-france",
    "errata show adapter --json",
)
SHOWN = 20  # edits that are listed; all of them with --json


def show(
    patch: Annotated[
        Path,
        typer.Argument(
            help="A patch folder, an adapter (a LoRA folder, or GGUF), or a checkpoint that errata "
            "merged.",
            show_default=False,
        ),
    ],
    json: JsonFlag = False,
) -> None:
    """Say what a patch is: its edits, editor, place, size, base model, date and known scores."""
    kind = _targets.kind_of(patch)
    if kind == _targets.ADAPTER:
        found = _adapter(patch)
    elif kind == _targets.GGUF:
        found = _gguf(patch)
    elif kind == _targets.MODEL:
        found = _merged(patch)
    else:
        found = _patch(patch)
    files, count = ([], patch.stat().st_size) if patch.is_file() else _output.folder_size(patch)
    found |= {"folder": str(patch), "files": files, "bytes_on_disk": count}
    if json:
        _output.print_json(found)
        return
    _print(found)


def _patch(folder: Path) -> dict[str, Any]:
    from errata.data._records import thaw
    from errata.patch import Patch
    from errata.patch.describe import blocks, where

    patch = Patch.load(folder)
    patch.check_finite()
    meta = thaw(patch.meta)
    document = _targets.patch_document(folder)
    return {
        "kind": "patch",
        "editor": meta.get("editor"),
        "changes": where(patch),
        "empty": patch.is_empty,
        "blocks": blocks(patch),
        "ranks": patch.ranks(),
        "parts": [_part(change) for change in patch.changes],
        "bytes": patch.nbytes,
        "model": meta.get("model"),
        "revision": meta.get("revision"),
        "fingerprint": patch.fingerprint,
        "made": meta.get("made"),
        "errata": meta.get("errata"),
        "composed_of": meta.get("composed_of"),
        "sheet": meta.get("sheet"),
        "changelog": _changelog(folder, patch),
        "signed": _signed(folder),
        "scaled": meta.get("scaled"),
        "blocks_from": meta.get("blocks_from"),
        "moments_from": meta.get("moments_from"),
        "compute": meta.get("compute"),
        "settings_from": meta.get("settings_from"),
        "settings": meta.get("config") or {},
        "state": sorted(patch.state),
        "edits": _edits(patch),
        "moved": patch.report.line() or None,
        "verified": _verified(folder, document.get("sha256")),
    }


def _changelog(folder: Path, patch: Patch) -> list[dict[str, Any]] | None:
    """Return what the builds of a sheet changed, the latest last."""
    if patch.meta.get("sheet") is None:
        return None
    from errata.sheets.changelog import changelog

    return [{"words": str(one), **one.model_dump()} for one in changelog(folder, patch)]


def _signed(folder: Path) -> str | None:
    """Return what the folder says of its signature, which only a key can confirm."""
    from errata.patch.signature import read_signature

    try:
        found = read_signature(folder)
    except PatchError as error:
        return error.message
    if found is None:
        return None
    if not found.fits:
        return f"by {found.key}, but altered since: the signature is worth nothing"
    return f"by {found.key}, as it says; errata verify {folder} --signed-by PUBKEY checks it"


def _part(change: Any) -> dict[str, Any]:
    shapes = {name: list(tensor.shape) for name, tensor in change.tensors().items()}
    return {"kind": change.kind, "path": change.path, "shapes": shapes}


def _edits(patch: Patch) -> list[dict[str, Any]]:
    results = patch.results or (None,) * len(patch.edits)
    return [
        {
            "prompt": edit.prompt,
            "target": edit.target,
            "subject": edit.subject,
            "id": edit.id,
            **how_asked(edit),
            "result": None if result is None else dict(result),
        }
        for edit, result in zip(patch.edits, results, strict=True)
    ]


def _verified(folder: Path, digest: object) -> dict[str, Any] | None:
    """Return what the last `errata verify` found, if it was of these very tensors."""
    from errata.cli.verify import VERIFIED

    try:
        found = jsonlib.loads((folder / VERIFIED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _output.note(f"{folder / VERIFIED} cannot be read: {error}")
        return None
    if not isinstance(found, dict) or found.get("patch_sha256") != digest:
        return None
    return found


def _adapter(folder: Path) -> dict[str, Any]:
    from errata.patch.adapter import pairs_of, read_adapter
    from errata.patch.card import read_record

    config, tensors = read_adapter(folder)
    pairs = pairs_of(folder, config, tensors)
    record = read_record(folder) or {}
    return {
        "kind": "adapter",
        "editor": record.get("editor"),
        "changes": f"LoRA of rank {config.get('r', 8)} on {_output.counted(len(pairs), 'module')}",
        "modules": sorted(pairs),
        "rank": config.get("r", 8),
        "alpha": config.get("lora_alpha", 8),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "model": config.get("base_model_name_or_path"),
        "revision": config.get("revision"),
        **_recorded(record),
    }


def _gguf(source: Path) -> dict[str, Any]:
    from errata.patch.card import read_record
    from errata.patch.gguf_adapter import adapter_file, check_adapter

    path = adapter_file(source)
    header = check_adapter(path)
    record = read_record(path.parent, of=path.name) or {}
    names = sorted({name.rpartition(".")[0] for name in header.tensors})
    ranks = {
        header.shapes[f"{name}.lora_b"][0] for name in names if f"{name}.lora_b" in header.shapes
    }
    rank = "–".join(map(str, sorted({min(ranks), max(ranks)}))) if ranks else "0"
    what = f"LoRA of rank {rank} on {_output.counted(len(names), 'module')}"
    return {
        "kind": "adapter for llama.cpp",
        "editor": record.get("editor"),
        "changes": f"{what} ({header.architecture})",
        "modules": names,
        "bytes": path.stat().st_size,
        "model": record.get("base_model"),
        "revision": record.get("revision"),
        **_recorded(record),
    }


def _merged(folder: Path) -> dict[str, Any]:
    from errata.patch.card import read_record

    record = read_record(folder)
    if record is None:
        raise PatchError(
            f"{folder} is a model, and no record says what was edited in it",
            f"errata doctor {folder} says what errata understands of it.",
        )
    weights = sum((folder / name).stat().st_size for name in record["weights"])
    return {
        "kind": "merged",
        "editor": record.get("editor"),
        "changes": "merged into the weights",
        "bytes": weights,
        "model": record.get("base_model"),
        "revision": record.get("revision"),
        **_recorded(record),
    }


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the record of an export says."""
    results = record.get("results") or [None] * len(record.get("edits", ()))
    edits = [
        {**entry, "result": result}
        for entry, result in zip(record.get("edits", ()), results, strict=False)
        if isinstance(entry, dict)
    ]
    return {
        "fingerprint": record.get("fingerprint"),
        "made": record.get("made"),
        "exported": record.get("exported"),
        "errata": record.get("errata"),
        "settings": record.get("config") or {},
        "edits": edits,
    }


def _print(found: Mapping[str, Any]) -> None:
    console = _output.out()
    console.print(f"{found['folder']}: {found['kind']}", soft_wrap=True)
    table = _output.table("", "")
    table.show_header = False
    size = f"{_output.size(found['bytes'])} ({_output.size(found['bytes_on_disk'])} on disk)"
    rows = {
        "editor": found.get("editor"),
        "changes": found["changes"],
        "blocks": found.get("blocks_from"),
        "moments": found.get("moments_from"),
        "searched": found.get("compute") and f"with products in {found['compute']}",
        "settings": found.get("settings_from"),
        "size": size,
        "base model": found.get("model"),
        "revision": found.get("revision"),
        "fingerprint": (found.get("fingerprint") or "")[:12],
        "made": found.get("made"),
        "exported": found.get("exported"),
        "errata": found.get("errata"),
        "composed of": ", ".join(part["name"] for part in found.get("composed_of") or ()),
        "scaled by": found.get("scaled"),
        "sheet": (found.get("sheet") or {}).get("name"),
        "signed": found.get("signed"),
        "beside the edits": found.get("moved"),
        "verified": _scores(found.get("verified")),
    }
    for name, value in rows.items():
        if value not in (None, ""):
            table.add_row(name, str(value))
    console.print(table)
    if found.get("sheet"):
        facts = found["sheet"]["facts"]
        console.print(f"{_output.counted(len(facts), 'fact')} of the sheet:")
        for line in _sheet_views.sheet_facts(found["sheet"]):
            console.print(line, soft_wrap=True)
    if found.get("changelog"):
        console.print("Changelog:")
        for one in found["changelog"][-SHOWN:]:
            day = str(one["made"] or "").partition("T")[0]
            console.print(f"  {day}  {one['words']}", soft_wrap=True)
    _list(console, found["edits"])


def _scores(verified: Mapping[str, Any] | None) -> str | None:
    if verified is None:
        return None
    rates = verified.get("rates") or {}
    shown = [f"{m} {rates[m]:.3f}" for m in ("reliability", "generality", "locality") if m in rates]
    passed = f"{verified.get('passed')} of {verified.get('questions')} passed"
    top = f"top {verified.get('top_k')}"
    return " · ".join([passed, *shown, top, str(verified.get("data")), str(verified.get("when"))])


def _list(console: Any, edits: Sequence[Mapping[str, Any]]) -> None:
    from rich.text import Text

    console.print(f"{_output.counted(len(edits), 'edit')}{':' if edits else ' named'}")
    for edit in edits[:SHOWN]:
        result = edit.get("result") or {}
        mark = _views.mark(result.get("taken"))
        prompt = _views.asked(edit["prompt"], edit.get("chat", "off"))
        text = Text.assemble(
            mark if mark[0] else "  ", prompt, " → ", (edit["target"].strip(), "bold")
        )
        if "p_before" in result:
            text.append(f"  {result['p_before']:.4f} → {result['p_after']:.4f}")
        console.print(text)
    if len(edits) > SHOWN:
        console.print(f"… and {_output.counted(len(edits) - SHOWN, 'more edit')} (--json)")
    if edits and all(edit.get("result") is None for edit in edits):
        console.print("What the model answers is not on record: errata verify asks it.")
