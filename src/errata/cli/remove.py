"""`errata remove` and `errata replace`: single edits taken out of a finished patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _signing, _targets, _views
from errata.cli._options import ForceFlag, JsonFlag, ModelOptions, expand
from errata.errors import ConfigError, DataError, EditError

if TYPE_CHECKING:
    from errata.case import Edit
    from errata.patch import Patch

EXAMPLES = (
    'errata remove facts --edit "The capital of France is" --out fewer',
    "errata remove facts --edit 17 --edit #3 --out fewer",
    "errata remove facts --edit 17 --rebuild --batch 100 --out fewer",
)
REPLACE_EXAMPLES = (
    "errata replace facts --edit 17 --target Oslo --out newer",
    "errata replace facts --edit 17 --target Oslo --rebuild --out newer",
)

Source = Annotated[Path, typer.Argument(metavar="PATCH", help="A patch folder.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="PATCH", help="Where to write it.")]
Rebuild = Annotated[
    bool,
    typer.Option(
        "--rebuild",
        help="Make all other edits again, which every editor can; else the edit is taken out of"
        " what the patch holds, which an editor has to be free of order for.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(min=1, help="With --rebuild: edits of one turn; default: all together."),
]


@expand
def remove(
    patch: Source,
    model: ModelOptions,
    out: Out,
    edit: Annotated[
        list[str],
        typer.Option(metavar="ID", help="An edit: its id, its prompt, or #N. Repeatable."),
    ],
    rebuild: Rebuild = False,
    batch: Batch = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Take edits out of a patch: what is left is the patch that would have been made without them.

    Of a patch that keeps what each edit asked for (+simie; ultraedit with order=free) that is
    exact and needs no model. Other editors' updates depend on the edits before: --rebuild makes the
    rest again.
    """
    _check(rebuild, batch, out, force)
    loaded = _loaded(patch)
    numbers = _named(loaded, edit)
    gone = [loaded.edits[number - 1] for number in numbers]
    if rebuild:
        from errata.inspection.rebuilding import maker_of, without

        maker_of(loaded)  # before a model is loaded for nothing
        _, lm = _targets.patch_and_model(patch, model.as_made(loaded.meta))
        with _output.progress(_output.counted(len(loaded.edits) - len(gone), "edit")) as step:
            left = without(lm, loaded, numbers, batch=batch, progress=step)
    else:
        left = loaded.without(*numbers)
    _write(left, gone, None, patch, out, force, json, rebuild)


@expand
def replace(
    patch: Source,
    model: ModelOptions,
    out: Out,
    edit: Annotated[str, typer.Option(metavar="ID", help="The edit: its id, its prompt, or #N.")],
    target: Annotated[str, typer.Option("--target", "-t", help="The new answer.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="A new question; default: the old one.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Subject of a new question.")] = None,
    rebuild: Rebuild = False,
    batch: Batch = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Put another answer, or another fact, in the place of one edit of a patch."""
    _check(rebuild, batch, out, force)
    if subject is not None and prompt is None:
        raise ConfigError("--subject belongs to a new --prompt", "Add --prompt, or leave it out.")
    loaded = _loaded(patch)
    (number,) = _named(loaded, [edit])
    old = loaded.edits[number - 1]
    from errata.inspection.rebuilding import maker_of, replaced, variant

    try:
        new = variant(old, target, prompt, subject)
    except DataError as error:
        raise EditError(error.message, "Check --prompt, --target and --subject.") from None
    maker_of(loaded).check(new)
    if not rebuild:
        loaded.without(number)  # before a model is loaded for nothing
    _, lm = _targets.patch_and_model(patch, model.as_made(loaded.meta))
    with _output.progress(_output.counted(len(loaded.edits), "edit")) as step:
        made = replaced(lm, loaded, number, new, rebuild=rebuild, batch=batch, progress=step)
    _write(made, [old], new, patch, out, force, json, rebuild)


def _check(rebuild: bool, batch: int | None, out: Path, force: bool) -> None:
    if batch is not None and not rebuild:
        raise ConfigError("--batch belongs to --rebuild", "Add --rebuild, or leave it out.")
    _output.check_free(out, "patch.json", force)


def _loaded(folder: Path) -> Patch:
    from errata.patch import Patch

    patch = Patch.load(folder)
    patch.check_finite()
    return patch


def _named(patch: Patch, names: Sequence[str]) -> list[int]:
    """Return the numbers of the edits that are named, from 1, each once.

    Raises:
        PatchError: If there is none, or several, of a name.
    """
    from errata.patch.removal import find_edit

    return sorted({find_edit(patch, name) + 1 for name in names})


def _write(
    made: Patch,
    gone: Sequence[Edit],
    new: Edit | None,
    source: Path,
    out: Path,
    force: bool,
    json: bool,
    rebuild: bool,
) -> None:
    made = made.dated()
    _signing.say_dropped([source], out)
    folder = made.save(out, force=force)
    files, count = _output.folder_size(folder)
    if json:
        from errata.case import described

        told: dict[str, Any] = {
            "of": str(source),
            "removed": [described(edit) for edit in gone],
            **({} if new is None else {"put_in": described(new)}),
            "rebuilt": rebuild,
            **_views.facts(made),
            "saved": {"folder": str(folder), "files": files, "bytes": count},
        }
        _output.print_json(told)
        return
    console = _output.out()
    for edit in gone:
        instead = "" if new is None else f", in its place {new.prompt!r} → {new.target.strip()!r}"
        console.print(
            f"Out: {edit.prompt!r} → {edit.target.strip()!r}{instead}", soft_wrap=True, markup=False
        )
    left = _output.counted(len(made.edits), "edit")
    how = f"all made again by {made.meta.get('editor')}" if rebuild else "solved without it"
    if len(gone) > 1 and not rebuild:
        how = "solved without them"
    if new is not None and not rebuild:
        how = "solved with the new one"
    console.print(f"{left} · {how} · {_views.what_changed(made)}", soft_wrap=True)
    _output.saved(out, files, count)
    console.print(f"Check it: errata verify {out}", soft_wrap=True)
