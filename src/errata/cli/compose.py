"""`errata compose` and `errata scale`: new patches out of finished ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _signing, _views
from errata.cli._options import ForceFlag, JsonFlag
from errata.errors import ConfigError, PatchError

if TYPE_CHECKING:
    from errata.case import Edit
    from errata.patch import Patch

EXAMPLES = (
    "errata compose rome-france rome-italy --out both",
    "errata compose rome-france rome-italy --out both --force --json",
)
SCALE_EXAMPLES = ("errata scale rome-france 0.5 --out half",)
SHOWN = 5  # contradictions that a message names

Out = Annotated[Path, typer.Option("--out", "-o", metavar="PATCH", help="Where to write it.")]


def compose(
    patches: Annotated[
        list[Path],
        typer.Argument(metavar="PATCH PATCH…", help="Patch folders of one base model, in order."),
    ],
    out: Out,
    contradictions: Annotated[
        bool,
        typer.Option(
            "--allow-contradictions",
            help="Compose patches that answer one prompt differently, or hold one edit twice.",
        ),
    ] = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Put several patches together into one that holds them all.

    Changes of weights add up; what stands beside the model acts in the order given. Two patches
    that were made apart may disturb each other: verify the result.
    """
    if len(patches) < 2:
        raise ConfigError("expected at least two patches", "errata compose A B --out C")
    _output.check_free(out, "patch.json", force)
    from errata.patch import Patch

    loaded = [Patch.load(folder) for folder in patches]
    for folder, patch in zip(patches, loaded, strict=True):
        patch.check_finite()
        if patch.is_empty:
            raise PatchError(f"{folder} changes nothing", "Leave it out.")
    _same_base(patches, loaded)
    found = _clashes(patches, loaded)
    if found and not contradictions:
        shown = "; ".join(found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise PatchError(
            f"these patches contradict each other: {shown}{more}",
            "Make the later edit on top of the earlier patch (errata edit --after), leave one out, "
            "or add --allow-contradictions.",
        )
    for text in found:
        _output.note(text)
    total = loaded[0]
    for patch in loaded[1:]:
        total = total + patch
    total = replace(total, meta=_meta(patches, loaded, total))
    lost = _states(loaded)
    if lost:
        _output.note(
            f"state that the patches both keep for later edits ({', '.join(lost)}): that of "
            f"{patches[-1]} is kept"
        )
    _write(total, out, force, json, {"of": [str(folder) for folder in patches]})


def _same_base(folders: Sequence[Path], patches: Sequence[Patch]) -> None:
    """Refuse patches of different base models; names the first two.

    Raises:
        PatchError: If two fingerprints differ.
    """
    bases = [patch.base for patch in patches]
    first = next((i for i, base in enumerate(bases) if base is not None), None)
    if first is None:
        return
    for folder, patch, base in zip(folders, patches, bases, strict=True):
        if base is not None and not base.same(bases[first]):  # type: ignore[arg-type]
            raise PatchError(
                f"{folders[first]} was made for {patches[first].meta.get('model')} "
                f"({bases[first]}), {folder} for {patch.meta.get('model')} ({base})",
                "Only patches of one base model can be composed.",
            )


def _clashes(folders: Sequence[Path], patches: Sequence[Patch]) -> list[str]:
    """Return what stands in the way: prompts with different answers, and edits made twice."""
    seen: dict[object, tuple[Path, Edit]] = {}
    found: list[str] = []
    for folder, patch in zip(folders, patches, strict=True):
        own: dict[object, Edit] = {edit.question: edit for edit in patch.edits}
        for edit in own.values():
            if edit.question not in seen:
                continue
            where, first = seen[edit.question]
            if first.target.strip() == edit.target.strip():
                text = f"{edit.prompt!r} is answered by {edit.target.strip()!r} twice: in {where}"
                found.append(f"{text} and in {folder}, so its change would be made twice")
            else:
                found.append(
                    f"{edit.prompt!r} is {first.target.strip()!r} in {where} and "
                    f"{edit.target.strip()!r} in {folder}"
                )
        seen |= {question: (folder, edit) for question, edit in own.items()}
    return found


def _states(patches: Sequence[Patch]) -> list[str]:
    names: set[str] = set()
    twice: set[str] = set()
    for patch in patches:
        twice |= names & set(patch.state)
        names |= set(patch.state)
    return sorted(twice)


def _meta(folders: Sequence[Path], patches: Sequence[Patch], total: Patch) -> dict[str, Any]:
    """Return where the composed patch comes from; each part keeps what it says of itself."""
    from errata import __version__
    from errata.data._records import thaw
    from errata.store.provenance import now

    parts = [
        {
            "name": folder.name,
            **{key: patch.meta.get(key) for key in ("editor", "made", "errata")},
            "config": thaw(patch.meta.get("config") or {}),
            "edits": len(patch.edits),
        }
        for folder, patch in zip(folders, patches, strict=True)
    ]
    editors = dict.fromkeys(str(patch.meta.get("editor")) for patch in patches)
    own = {"editor": ", ".join(editors), "made": now(), "errata": __version__}
    return {**thaw(total.meta), "config": {}, **own, "composed_of": parts}


def scale(
    patch: Annotated[Path, typer.Argument(help="A patch folder.", show_default=False)],
    factor: Annotated[float, typer.Argument(help="0.5 halves the change of the weights.")],
    out: Out,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Make a patch weaker or stronger: its change of the weights times a factor.

    What stands beside the weights (modules, routes, contexts) has no strength, so a patch with
    such parts is refused.
    """
    if not math.isfinite(factor) or factor == 0:
        raise ConfigError(
            f"a factor of {factor:g} {'leaves nothing' if factor == 0 else 'is no number'}",
            "Example: errata scale PATCH 0.5 --out HALF",
        )
    _output.check_free(out, "patch.json", force)
    from errata.data._records import thaw
    from errata.patch import Patch

    loaded = Patch.load(patch)
    loaded.check_finite()
    if loaded.is_empty:
        raise PatchError(f"{patch} changes nothing; there is nothing to scale")
    scaled = loaded.scaled(factor)
    scaled.check_finite()
    before = loaded.meta.get("scaled")
    total = factor * (before if isinstance(before, int | float) else 1.0)
    scaled = replace(scaled, meta={**thaw(loaded.meta), "scaled": total})
    _write(scaled, out, force, json, {"of": [str(patch)], "factor": factor})


def _write(patch: Patch, out: Path, force: bool, json: bool, told: dict[str, Any]) -> None:
    _signing.say_dropped(map(Path, told["of"]), out)
    folder = patch.save(out, force=force)
    files, count = _output.folder_size(folder)
    if json:
        saved = {"folder": str(folder), "files": files, "bytes": count}
        _output.print_json({**told, **_views.facts(patch), "saved": saved})
        return
    console = _output.out()
    edits = _output.counted(len(patch.edits), "edit")
    console.print(f"{edits} · {_views.what_changed(patch)}")
    _output.saved(out, files, count)
    console.print(f"Check it: errata verify {out}", soft_wrap=True)
