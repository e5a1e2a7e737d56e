"""Models, editors and patches as a few words or a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from errata.case import Edit
from errata.cli import _output

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from errata.api import View
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.patch import Patch


def sites(lm: LM) -> dict[str, Any]:
    """Return what the probe found, as paths with `{}` for the number of the block."""
    from errata.model.spec import describe

    return describe(lm.spec, lm.model)


def headline(lm: LM) -> str:
    """Return one line about a model."""
    found = sites(lm)
    return (
        f"{lm.name} · {found['n_blocks']} blocks · {found['parameters'] / 1e6:.1f} M parameters · "
        f"FFN output {found['ffn_out']} (found by probe)"
    )


def settings(editor: Editor) -> dict[str, Any]:
    """Return the settings of an editor as JSON values."""
    return editor.config.model_dump(mode="json")


def what_changed(patch: Patch) -> str:
    """Return where a patch changes a model, how and how much."""
    from errata.patch.describe import where

    return where(patch)


def facts(patch: Patch) -> dict[str, Any]:
    """Return what a patch is, as JSON values."""
    return {
        "model": patch.meta.get("model"),
        "fingerprint": patch.fingerprint,
        "editor": patch.meta.get("editor"),
        "edits": len(patch.edits),
        "changes": [{"kind": change.kind, "path": change.path} for change in patch.changes],
        "ranks": patch.ranks(),
        "bytes": patch.nbytes,
    }


def estimate(lm: LM, editor: Editor, requests: Sequence[Edit]) -> dict[str, Any]:
    """Return the blocks an editor edits, and the least and most bytes of its patch.

    The least is one rank-one term per edit and block; the most is whole float32 matrices. What an
    editor that changes no weight puts beside the model is not known beforehand: None.
    """
    if editor.name == "none":
        return {"layers": [], "patch_bytes": {"least": 0, "most": 0}}
    blocks = editor.edited_layers(lm)
    layers = "auto" if blocks is None else list(blocks)
    if not editor.weights:
        return {"layers": layers, "patch_bytes": None}
    count = 1 if blocks is None else len(blocks)
    site = lm.site(0)
    most = 4 * count * site.d_in * site.d_out
    least = 4 * count * len(requests) * (site.d_in + site.d_out)
    return {"layers": layers, "patch_bytes": {"least": min(least, most), "most": most}}


def moments_state(lm: LM, editor: Editor) -> str | None:
    """Say whether the second moments that an editor needs are in the cache; None: it needs none."""
    config = editor.config
    if "moments" not in editor.needs or not getattr(editor, "whitens", True):
        return None
    if getattr(config, "moments_file", None):
        return f"given: {config.moments_file}"  # pyright: ignore[reportAttributeAccessIssue]
    from errata.errors import DataError
    from errata.locate.moments import cached_layers

    layers = editor.edited_layers(lm)
    if layers is None:
        return None
    try:
        there = cached_layers(lm, layers, config)  # pyright: ignore[reportArgumentType]
    except DataError as error:  # what the edit itself would fail with
        return f"not to be had: {error.message}"
    missing = [layer for layer in layers if layer not in there]
    if not missing:
        return "in the cache"
    return f"to be counted for block{'s'[: len(missing) > 1]} {', '.join(map(str, missing))}"


def top(words: Sequence[tuple[str, float]]) -> str:
    """Return tokens with their probabilities, one per line; tokens that look equal are quoted."""
    shown = [_word(word) for word, _ in words]
    lines = []
    for (word, p), text in zip(words, shown, strict=True):
        # " Rome" and "Rome" are two tokens
        lines.append(f"{p:.3f}  {repr(word) if shown.count(text) > 1 else text}")
    return "\n".join(lines)


def _word(word: str) -> str:
    shown = word.strip()
    return shown if shown and shown.isprintable() else repr(word)


def before_after(views: Sequence[View], headings: Sequence[str] = ("before", "after")) -> Table:
    """Return the table of most probable next words and the model's own continuation.

    Args:
        views: What is shown.
        headings: Headings of the two columns.
    """
    from rich.text import Text

    table = _output.table("prompt", *headings)
    for number, view in enumerate(views):
        if number:
            table.add_section()
        prompt = Text.assemble(mark(view.hit_after), asked(view.prompt, view.chat))
        table.add_row(prompt, top(view.before), top(view.after))
        table.add_row("  says", said(view.says_before), said(view.says_after))
        if view.target is not None and view.p_before is not None and view.p_after is not None:
            label = f"  probability of {view.target!r}"
            table.add_row(label, f"{view.p_before:.4f}", f"{view.p_after:.4f}")
    return table


def asked(prompt: str, chat: str) -> Text:
    """Return a prompt, and in which chat it is asked."""
    from rich.text import Text

    text = Text(prompt)
    if chat != "off":
        text.append(f" (chat: {chat})", "dim")
    return text


def mark(taken: bool | None) -> tuple[str, str]:
    """Return ✓ or ✗ with its style; nothing where there is nothing to judge."""
    return {True: ("✓ ", "green"), False: ("✗ ", "bold red")}.get(taken, ("", ""))  # pyright: ignore[reportArgumentType, reportCallIssue]


def said(text: str) -> str:
    """Return the model's own words on one line, in quotation marks."""
    return "“" + " ".join(text.split()) + "”"


def breakdown(by: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Flatten the break-downs of a summary into (group, member, value)."""
    rows: list[tuple[str, str, Any]] = []
    for group, members in by.items():
        if isinstance(members, Mapping):
            rows += [(group, str(name), value) for name, value in members.items()]
    return rows
