"""`errata edit`: write facts into a model as a patch, and show before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.case import HOW, Edit
from errata.cli import _edit_views, _output, _signing, _targets, _views
from errata.cli._gates import check_limits, parse_limits
from errata.cli._options import (
    ChatOptions,
    DryRunFlag,
    EditorOptions,
    ForceFlag,
    Joiner,
    JsonFlag,
    Limits,
    ModelOptions,
    Neighbours,
    Occurrence,
    expand,
)
from errata.errors import ConfigError, DataError, EditError
from errata.inspection.soundness import check_answers
from errata.spacing import AUTO

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.patch import Patch
    from errata.patch.compare import View

EXAMPLES = (
    'errata edit --prompt "The capital of France is" --subject France --target Rome',
    "errata edit --edits facts.jsonl --editor ft --set layers=3 --out patch --model ./my-model",
    "errata edit --edits facts.jsonl --editor memit --require --out facts",
    'errata edit --prompt "The capital of Italy is" --subject Italy --target Oslo'
    " --after patch --model ./my-model --out patch2 --dry-run",
)

SHOWN = 8  # edits whose before and after is shown in full; more are shown in one line each


@dataclass(frozen=True)
class Asked:
    """What is asked of the edited model, and what it decides."""

    stop_when: Annotated[
        str | None,
        typer.Option(
            metavar="perplexity=Nx",
            help="Sequential: stop, and keep what was made, before the perplexity of general"
            " sentences is N times that of the unedited model.",
        ),
    ] = None
    best: Annotated[
        bool,
        typer.Option(
            "--best",
            help="Try several editors in turn (--editor rome,ft): most edits taken, then fewest"
            " neighbours moved.",
        ),
    ] = False
    neighbours: Neighbours = True
    require: Annotated[
        bool, typer.Option("--require", help="Exit with 3 unless every edit was taken.")
    ] = False
    fail_over: Limits = None


Brief = Annotated[
    bool | None,
    typer.Option(
        "--brief/--full",
        help=f"One line per edit, or all probabilities; default: brief above {SHOWN} edits.",
        show_default=False,
    ),
]


@expand
def edit(
    model: ModelOptions,
    editor: EditorOptions,
    asked: Asked,
    chat: ChatOptions,
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
    subject_at: Occurrence = "last",
    joiner: Joiner = AUTO,
    edits: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|NAME:PATH",
            help='Many edits instead: one {"prompt", "target", "subject"} per line, or those of a'
            " data set.",
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
    brief: Brief = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Save the patch here; else only show."),
    ] = None,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Write one fact, or a file of facts, into a model as a patch.

    The model itself is never changed: the patch is applied, looked at and undone exactly. An edit
    is taken if the model's greedy answer under the patch is the target. What else moved is asked
    too: other subjects in the same prompt, and general sentences.
    """
    from errata.editors.fitting import fitted
    from errata.inspection.turns import built, check_regime

    model = model.for_editing(editor.as_published)
    how = {"joiner": joiner, "chat": chat.check(), "system": chat.system}
    requests = _requests(prompt, target, subject, edits, {**how, "subject_at": subject_at})
    check_regime(regime, asked.stop_when)
    limits = parse_limits(asked.fail_over, asked.neighbours)
    names = _names(editor.editor, asked, dry_run)
    if out is not None:
        _output.check_free(out, "patch.json", force)
    earlier = _earlier(after)
    named = {} if earlier is None else earlier.meta
    base = model.model if _targets.given(model) else named.get("model") or model.model
    chosen = (
        built(names, {}, editor.settings or (), editor.as_published, base)
        if asked.best
        else [editor.build(base)]
    )
    for request in () if asked.best else requests:
        chosen[0].check(request)  # before a model is loaded for nothing
    # with an earlier patch, that it is of another model is to be said first
    ready = None if earlier is not None or asked.best else lambda: chosen[0].ready(base)
    lm = _targets.load_base(model, named.get("model"), named.get("revision"), after or "", ready)
    chosen = [fitted(one, lm) for one in chosen]
    if earlier is not None:
        earlier.check(lm)
        check_answers(earlier, lm)
    clashes = _clashes(requests, earlier, after)
    for text in clashes:
        _output.note(text)
    if dry_run:
        _edit_views.plan(lm, chosen[0], requests, out, clashes, json)
        return
    label = f"{editor.editor}: {_output.counted(len(requests), 'edit')}"
    maker, patch, took = _make(lm, chosen, requests, earlier, regime, asked, label)
    requests = maker.meant(lm, requests)
    _signing.say_dropped([after], out)
    shown = _Shown(requests, earlier, after, clashes, took, _save(patch, out, force))
    brief = len(requests) > SHOWN if brief is None else brief
    views = _views_of(lm, maker, patch, also or [], shown, chat, json or not brief)
    _show(lm, maker, patch, views, shown, brief, json)
    missed = [entry for entry in patch.report.on(requests) if not entry.taken]
    failed = []
    if missed and asked.require:
        count = _output.counted(len(missed), "edit")
        failed.append(f"{count} of {len(requests)} not taken, --require allows none")
    check_limits(limits, patch.report.metrics(), failed)


def _make(
    lm: LM,
    chosen: Sequence[Editor],
    requests: Sequence[Edit],
    earlier: Patch | None,
    regime: str,
    asked: Asked,
    label: str,
) -> tuple[Editor, Patch, tuple[float, float]]:
    """Make the edits and ask for them: who made them, the patch, seconds of editing and asking."""
    from errata.inspection.look import look
    from errata.inspection.turns import best, make

    started = time.perf_counter()
    with _output.progress(label) as step:
        if asked.best:
            editor, patch = best(
                lm, chosen, requests, earlier,
                regime=regime, stop_when=asked.stop_when, progress=step,
            )  # fmt: skip
            return editor, patch.dated(), (time.perf_counter() - started, 0.0)
        (editor,) = chosen
        editor.prepare(lm)
        patch, course = make(
            lm, editor, requests, earlier,
            regime=regime, stop_when=asked.stop_when, progress=step,
        )  # fmt: skip
    took = time.perf_counter() - started
    patch = look(
        lm, patch, requests, earlier,
        editor=editor, neighbourhood=asked.neighbours, sequence=course,
    )  # fmt: skip
    return editor, patch.dated(), (took, time.perf_counter() - started - took)


def _names(given: str, asked: Asked, dry_run: bool) -> list[str]:
    """Return the names of the editors that are asked for."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if len(names) > 1 and not asked.best:
        raise ConfigError(
            f"--editor {given} names {len(names)} editors",
            f"Try them in turn: --editor {given} --best",
        )
    if asked.best and (not asked.neighbours or dry_run):
        other = "--dry-run" if dry_run else "--no-neighbours"
        raise ConfigError(
            f"--best compares editors by what is asked afterwards; {other} leaves it out",
            f"Leave out {other}, or name one editor without --best.",
        )
    return names


def _requests(
    prompt: str | None,
    target: str | None,
    subject: str | None,
    edits: Path | None,
    given: Mapping[str, Any],
) -> list[Edit]:
    at = str(given["subject_at"])
    how: dict[str, Any] = {**given, "subject_at": int(at) if at.isdigit() else at}
    if edits is not None:
        if prompt is not None or target is not None or subject is not None:
            raise ConfigError(
                "--edits replaces --prompt, --target and --subject", "Give one or the other."
            )
        from errata.data import load_edits

        plain = {**HOW, "subject_at": "last"}
        told = {name: value for name, value in how.items() if value != plain[name]}
        return [replace(edit, **told) for edit in load_edits(edits)]
    if prompt is None or target is None:
        missing = "--prompt" if prompt is None else "--target"
        raise ConfigError(
            f"{missing} is missing", "Give --prompt and --target (and --subject), or --edits FILE."
        )
    try:
        return [Edit(prompt, target, subject, **how)]
    except DataError as error:
        raise EditError(error.message, "Check --prompt, --target and --subject.") from None


def _earlier(after: Path | None) -> Patch | None:
    if after is None:
        return None
    from errata.patch import Patch

    patch = Patch.load(after)
    patch.check_finite()
    return patch


def _clashes(requests: Sequence[Edit], earlier: Patch | None, after: Path | None) -> list[str]:
    """Say which requests answer a prompt otherwise than an earlier one does."""
    seen: dict[object, tuple[str, str]] = {}
    for edit in () if earlier is None else earlier.edits:
        seen[edit.question] = (edit.target.strip(), f"in {after}")
    found = []
    for edit in requests:
        target = edit.target.strip()
        answer, where = seen.get(edit.question, (target, ""))
        if answer != target:
            found.append(f"{edit.prompt!r} is {answer!r} {where} and is to be {target!r} now")
        seen[edit.question] = (target, "in an edit before")
    return found


def _save(patch: Patch, out: Path | None, force: bool) -> dict[str, Any] | None:
    if out is None:
        return None
    folder = patch.save(out, force=force)
    files, count = _output.folder_size(folder)
    return {"folder": str(folder), "files": files, "bytes": count}


@dataclass(frozen=True)
class _Shown:
    """What is shown beside a patch.

    Attributes:
        requests: The edits asked for now.
        earlier: The patch that it builds on.
        after: Where that lies.
        clashes: Requests that contradict others.
        took: Seconds of editing, and of asking afterwards.
        saved: What was written.
    """

    requests: Sequence[Edit]
    earlier: Patch | None
    after: Path | None
    clashes: Sequence[str]
    took: tuple[float, float]
    saved: Mapping[str, Any] | None


def _views_of(
    lm: LM,
    editor: Editor,
    patch: Patch,
    also: Sequence[str],
    shown: _Shown,
    how: ChatOptions,
    full: bool,
) -> Sequence[View]:
    """Ask before and after: the requests, if all is to be seen, and what else the user asks."""
    from errata.api import compare
    from errata.locate.contexts import other_forms

    requests = list(shown.requests) if full else []
    others = other_forms(requests, getattr(editor.config, "contexts", None))
    prompts = [*requests, *others, *also]
    if not prompts:
        return ()
    return list(
        compare(lm, patch, prompts, before=shown.earlier, chat=how.check(), system=how.system)
    )


def _show(
    lm: LM,
    editor: Editor,
    patch: Patch,
    views: Sequence[View],
    shown: _Shown,
    brief: bool,
    json: bool,
) -> None:
    report, requests = patch.report, list(shown.requests)
    entries = report.on(requests)
    if json:
        _output.print_json(
            {
                "model": lm.name,
                "revision": lm.revision,
                "editor": editor.name,
                "settings": _views.settings(editor),
                "layers_from": editor.blocks_from(lm),
                "settings_from": editor.settings_from or None,
                "notes": editor.notes(lm, requests),
                "seconds": shown.took[0],
                "seconds_asking": shown.took[1],
                "edits": len(requests),
                "taken": sum(entry.taken is True for entry in entries),
                "after": None if shown.after is None else str(shown.after),
                "contradictions": list(shown.clashes),
                "prompts": [view.as_dict() for view in views],
                "report": report.as_dict(),
                "patch": {**_views.facts(patch), "saved": shown.saved},
            }
        )
        return
    console = _output.out()
    console.print(_views.headline(lm))
    changed = _views.what_changed(patch)
    console.print(f"{editor.title} · {changed} · {_output.seconds(shown.took[0])}")
    _edit_views.origins(console, lm, editor, patch, requests)
    if report.candidates:
        _edit_views.candidates(console, report.candidates)
    if brief:
        _edit_views.edits(console, entries)
    if views:
        old = "before" if shown.earlier is None else f"before, under {shown.after}"
        console.print(_views.before_after(views, (old, "after")))
    _edit_views.outcome(console, report, entries)
    if shown.saved is None:
        console.print("Not saved: add --out DIR. Undo: nothing was written to the model.")
    else:
        made = shown.saved
        undo = " Undo: nothing was written to the model."
        _output.saved(made["folder"], made["files"], made["bytes"], undo)
