"""A patch in a few words: where it changes a model, how, and how much; without the model."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Any

from errata.store.words import counted, size

if TYPE_CHECKING:
    from errata.case import Edit
    from errata.patch.patch import Patch

_BLOCK = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def blocks(patch: Patch) -> list[int]:
    """Return the numbers of the blocks that are changed, ascending.

    The block of a path is its first number: `model.layers.3.mlp.down_proj` lies in block 3.
    """
    found = (_BLOCK.search(change.path) for change in patch.changes if change.path)
    return sorted({int(match[1]) for match in found if match is not None})


def how(patch: Patch) -> list[str]:
    """Return the kinds of change in a few words: `rank 1`, `2 whole matrices`, `a rep module`."""
    words: list[str] = []
    ranks = sorted(set(patch.ranks().values()))
    if ranks:
        words.append(f"rank {'–'.join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))}")
    # differences of whole parameters: no factors stand for them
    dense = [c for c in patch.changes if c.parameter is not None and c.factors is None]
    sizes = [max((t.ndim for t in c.tensors().values()), default=0) for c in dense]
    for many, one, count in (
        ("whole matrices", "whole matrix", sum(n > 1 for n in sizes)),
        ("whole vectors", "whole vector", sum(n <= 1 for n in sizes)),
    ):
        if count:
            words.append(f"{count} {one if count == 1 else many}")
    modules: dict[str, int] = {}
    for change in patch.changes:
        if change.parameter is None and change.path:
            name = getattr(change, "name", change.kind)
            modules[name] = modules.get(name, 0) + 1
    words += [f"{count} {name} module{'s'[: count > 1]}" for name, count in modules.items()]
    return words


def where(patch: Patch) -> str:
    """Return where a patch changes a model, how and how much; one line."""
    if patch.is_empty:
        return "nothing changed"
    places = blocks(patch)
    # a context or a route acts on the whole model, so it has no block
    words = [c.label.removeprefix("the ") for c in patch.changes if not c.path]
    if places:
        words.insert(0, f"block{'s'[: len(places) > 1]} {', '.join(map(str, places))}")
    elsewhere = sorted({c.path for c in patch.changes if c.path and not _BLOCK.search(c.path)})
    words += [*elsewhere, *how(patch), f"patch {size(patch.nbytes)}"]
    return " · ".join(words)


def brief(patch: Patch) -> str:
    """Return one line about a patch."""
    words = [str(patch.meta["editor"])] if patch.meta.get("editor") else []
    words += [counted(len(patch.edits), "edit"), where(patch)]
    if patch.meta.get("model"):
        words.append(f"of {patch.meta['model']}")
    return f"<Patch: {' · '.join(words)}>"


def rows(patch: Patch) -> list[tuple[str, str]]:
    """Return what a notebook shows of a patch: names and values."""
    meta = patch.meta
    found: list[tuple[str, Any]] = [
        ("editor", meta.get("editor")),
        ("changes", where(patch)),
        ("base model", meta.get("model")),
        ("fingerprint", (patch.fingerprint or "")[:12]),
        ("made", meta.get("made")),
        ("errata", meta.get("errata")),
    ]
    return [(name, str(value)) for name, value in found if value]


def _chat(edit: Edit) -> str:
    return "" if edit.chat == "off" else f" <i>(chat: {edit.chat})</i>"


def html(patch: Patch, shown: int = 20) -> str:
    """Return a patch as an HTML table; every text of the user is escaped.

    Args:
        patch: The patch.
        shown: Edits that are listed.
    """
    body = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows(patch)
    )
    edits = "".join(
        f"<li>{escape(edit.prompt)}{_chat(edit)} → <b>{escape(edit.target.strip())}</b></li>"
        for edit in patch.edits[:shown]
    )
    left = len(patch.edits) - shown
    more = f"<p>… and {counted(left, 'more edit')}</p>" if left > 0 else ""
    return f"<table>{body}</table><ol>{edits}</ol>{more}"
