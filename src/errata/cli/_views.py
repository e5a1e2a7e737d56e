"""Models, editors and patches as a few words or a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from errata.case import Edit
from errata.cli import _output

if TYPE_CHECKING:
    from rich.table import Table

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


def what_changed(lm: LM, patch: Patch) -> str:
    """Return where a patch changes a model, and how much."""
    from errata.errors import SpecError

    if patch.is_empty:
        return "nothing changed"
    layers: set[int] = set()
    for change in patch.changes:
        try:
            layers.add(lm.spec.layer_of(change.path))
        except SpecError:
            continue
    ranks = sorted(set(patch.ranks().values()))
    whole = [change.label for change in patch.changes if not change.path]
    words = [label.removeprefix("the ") for label in whole]
    if layers or not whole:
        words.insert(0, f"block{'s'[: len(layers) > 1]} {', '.join(map(str, sorted(layers)))}")
    if ranks:
        words.append(f"rank {'–'.join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))}")
    words.append(f"patch {_output.size(patch.nbytes)}")
    return " · ".join(words)


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
    """Return the blocks an editor names, and the least and most bytes of its patch.

    The least is one rank-one term per edit and block; the most is whole float32 matrices. What an
    editor that changes no weight puts beside the model is not known beforehand: None.
    """
    if editor.name == "none":
        return {"layers": [], "patch_bytes": {"least": 0, "most": 0}}
    config = editor.config
    layers = getattr(config, "layers", getattr(config, "layer", "auto" if editor.weights else []))
    if not editor.weights:
        return {"layers": layers, "patch_bytes": None}
    count = len(layers) if isinstance(layers, list | tuple) else 1
    site = lm.site(0)
    most = 4 * count * site.d_in * site.d_out
    least = 4 * count * len(requests) * (site.d_in + site.d_out)
    shown = list(layers) if isinstance(layers, tuple) else layers
    return {"layers": shown, "patch_bytes": {"least": min(least, most), "most": most}}


def _top(words: Sequence[tuple[str, float]]) -> str:
    return "\n".join(f"{p:.3f}  {_word(word)}" for word, p in words)


def _word(word: str) -> str:
    shown = word.strip()
    return shown if shown and shown.isprintable() else repr(word)


def before_after(views: Sequence[View]) -> Table:
    """Return the table of most probable next words and the model's own continuation."""
    table = _output.table("prompt", "before", "after")
    for number, view in enumerate(views):
        if number:
            table.add_section()
        table.add_row(view.prompt, _top(view.before), _top(view.after))
        table.add_row("  says", _said(view.says_before), _said(view.says_after))
        if view.target is not None and view.p_before is not None and view.p_after is not None:
            label = f"  probability of {view.target!r}"
            table.add_row(label, f"{view.p_before:.4f}", f"{view.p_after:.4f}")
    return table


def _said(text: str) -> str:
    return "“" + " ".join(text.split()) + "”"


def breakdown(by: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Flatten the break-downs of a summary into (group, member, value)."""
    rows: list[tuple[str, str, Any]] = []
    for group, members in by.items():
        if isinstance(members, Mapping):
            rows += [(group, str(name), value) for name, value in members.items()]
    return rows
