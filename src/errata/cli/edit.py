"""`errata edit`: write facts into a model as a patch, and show before and after."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.case import Edit
from errata.cli import _output, _views
from errata.cli._options import DryRunFlag, EditorOptions, ForceFlag, JsonFlag, ModelOptions, expand
from errata.errors import ConfigError, DataError, EditError

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.patch import Patch

EXAMPLES = (
    'errata edit --prompt "The capital of France is" --subject France --target Rome',
    "errata edit --edits facts.jsonl --editor ft --set layer=3 --out patch --model ./my-model",
    'errata edit --prompt "…" --subject … --target … --after patch --out patch2 --dry-run',
)

SHOWN = 8  # edits whose before and after is shown in full


@expand
def edit(
    model: ModelOptions,
    editor: EditorOptions,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="The question, ending just before the answer."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="The answer to write.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="What the fact is about, as it stands in the prompt.")
    ] = None,
    edits: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='Many edits instead, one {"prompt", "target", "subject"} per line.',
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="PROMPT", help="Ask this too, before and after. Repeatable."),
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option(metavar="PATCH", help="Build on this patch; the new one contains it."),
    ] = None,
    regime: Annotated[
        str,
        typer.Option(help="Many edits: joint (solved together) or sequential (one after another)."),
    ] = "joint",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Save the patch here; else only show."),
    ] = None,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Write one fact, or a file of facts, into a model as a patch.

    The model itself is never changed: the patch is applied, looked at and undone exactly.
    """
    requests = _requests(prompt, target, subject, edits)
    if regime not in ("joint", "sequential"):
        raise ConfigError(f"unknown regime {regime!r}", "Known: joint, sequential")
    if out is not None:
        _output.check_free(out, "patch.json", force)
    chosen = editor.build(model.model)
    # with an earlier patch, that it is of another model is to be said first
    lm = model.load(None if after is not None else lambda: chosen.ready(model.model))
    earlier = _earlier(lm, after)
    if dry_run:
        _plan(lm, chosen, requests, out, json)
        return
    started = time.perf_counter()
    label = f"{editor.editor}: {len(requests)} edit{'s'[: len(requests) > 1]}"
    with _output.progress(label) as step:
        chosen.prepare(lm)
        patch = _make(lm, chosen, requests, earlier, regime, step)
    took = time.perf_counter() - started
    saved = _save(patch, out, force)
    _show(lm, chosen, patch, requests, also or [], took, saved, json)


def _requests(
    prompt: str | None, target: str | None, subject: str | None, edits: Path | None
) -> list[Edit]:
    if edits is not None:
        if prompt is not None or target is not None or subject is not None:
            raise ConfigError(
                "--edits replaces --prompt, --target and --subject", "Give one or the other."
            )
        from errata.data import load_edits

        return load_edits(edits)
    if prompt is None or target is None:
        missing = "--prompt" if prompt is None else "--target"
        raise ConfigError(
            f"{missing} is missing", "Give --prompt and --target (and --subject), or --edits FILE."
        )
    try:
        return [Edit(prompt, target, subject)]
    except DataError as error:
        raise EditError(error.message, "Check --prompt, --target and --subject.") from None


def _earlier(lm: LM, after: Path | None) -> Patch | None:
    if after is None:
        return None
    from errata.patch import Patch

    patch = Patch.load(after)
    patch.check(lm)
    return patch


def _make(
    lm: LM, editor: Editor, requests: Sequence[Edit], earlier: Patch | None, regime: str,
    step: _output.Progress,
) -> Patch:  # fmt: skip
    groups = [list(requests)] if regime == "joint" else [[request] for request in requests]
    patch = earlier
    for number, group in enumerate(groups):
        if len(groups) > 1:  # of a single group its own steps are shown
            step(number, len(groups))
        patch = editor.edit_one(lm, group, patch)
    assert patch is not None  # there is at least one request
    return patch


def _save(patch: Patch, out: Path | None, force: bool) -> dict[str, Any] | None:
    if out is None:
        return None
    folder = patch.save(out, force=force)
    files, count = _output.folder_size(folder)
    return {"folder": str(folder), "files": files, "bytes": count}


def _plan(lm: LM, editor: Editor, requests: Sequence[Edit], out: Path | None, json: bool) -> None:
    document = {
        "dry_run": True,
        "model": lm.name,
        "editor": editor.name,
        "edits": len(requests),
        "sites": _views.sites(lm),
        "settings": _views.settings(editor),
        **_views.estimate(lm, editor, requests),
        "out": None if out is None else str(out),
    }
    for request in requests:
        lm.row(request.prompt, request.target, request.subject)
    if json:
        _output.print_json(document)
        return
    console = _output.out()
    console.print(_views.headline(lm))
    table = _output.table("what", "value")
    table.add_row("editor", f"{editor.name}: {editor.title}")
    table.add_row("edits", str(len(requests)))
    table.add_row("layers", str(document["layers"] or "none"))
    size = document["patch_bytes"]
    if size is None:
        table.add_row("patch", "changes no weight")
    else:
        least, most = _output.size(size["least"]), _output.size(size["most"])
        table.add_row("patch", f"{least} (low rank) to {most} (whole matrices)")
    for key, value in document["settings"].items():
        table.add_row(f"  {key}", str(value))
    console.print(table)
    where = "The patch would not be saved: no --out." if out is None else f"It would go to {out}/"
    console.print(f"Dry run: nothing was edited or written. {where}", soft_wrap=True)


def _show(
    lm: LM,
    editor: Editor,
    patch: Patch,
    requests: Sequence[Edit],
    also: Sequence[str],
    took: float,
    saved: dict[str, Any] | None,
    json: bool,
) -> None:
    from errata.api import compare

    shown = list(requests) if json else list(requests[:SHOWN])
    prompts = [request.prompt for request in shown] + list(also)
    targets: list[str | None] = [request.target for request in shown]
    views = compare(lm, patch, prompts, targets + [None] * len(also))
    if json:
        _output.print_json(
            {
                "model": lm.name,
                "revision": lm.revision,
                "editor": editor.name,
                "settings": _views.settings(editor),
                "seconds": took,
                "prompts": [view.as_dict() for view in views],
                "patch": {**_views.facts(patch), "saved": saved},
            }
        )
        return
    console = _output.out()
    console.print(_views.headline(lm))
    console.print(f"{editor.title} · {_views.what_changed(lm, patch)} · {_output.seconds(took)}")
    console.print(_views.before_after(views))
    if len(requests) > SHOWN:
        console.print(f"… and {len(requests) - SHOWN} more edits (all of them with --json)")
    if saved is None:
        console.print("Not saved: add --out DIR. Undo: nothing was written to the model.")
    else:
        files = ", ".join(saved["files"])
        console.print(
            f"Saved {saved['folder']}/ ({files}; {_output.size(saved['bytes'])})."
            " Undo: nothing was written to the model.",
            soft_wrap=True,
        )
