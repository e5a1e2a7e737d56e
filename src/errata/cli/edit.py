"""`errata edit`: write facts into a model as a patch, and show before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.case import HOW, Edit
from errata.cli import _output, _targets, _views
from errata.cli._options import (
    ChatOptions,
    DryRunFlag,
    EditorOptions,
    ForceFlag,
    Joiner,
    JsonFlag,
    ModelOptions,
    expand,
)
from errata.errors import ConfigError, DataError, EditError, GateError
from errata.spacing import AUTO

if TYPE_CHECKING:
    from rich.console import Console

    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.patch import Patch

EXAMPLES = (
    'errata edit --prompt "The capital of France is" --subject France --target Rome',
    "errata edit --edits facts.jsonl --editor ft --set layers=3 --out patch --model ./my-model",
    "errata edit --edits facts.jsonl --editor memit --require --out facts",
    'errata edit --prompt "The capital of Italy is" --subject Italy --target Oslo'
    " --after patch --model ./my-model --out patch2 --dry-run",
)

SHOWN = 8  # edits whose before and after is shown in full; more are shown in one line each
SAID = 8  # tokens of the model's own words where an edit was not taken
LISTED = 20  # edits that were taken and are listed; those that were not are listed all


@expand
def edit(
    model: ModelOptions,
    editor: EditorOptions,
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
    joiner: Joiner = AUTO,
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
    require: Annotated[
        bool, typer.Option("--require", help="Exit with 3 unless every edit was taken.")
    ] = False,
    brief: Annotated[
        bool | None,
        typer.Option(
            "--brief/--full",
            help=f"One line per edit, or all probabilities; default: brief above {SHOWN} edits.",
            show_default=False,
        ),
    ] = None,
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
    is taken if the model's greedy answer under the patch is the target.
    """
    how: dict[str, Any] = {"joiner": joiner, "chat": chat.check(), "system": chat.system}
    requests = _requests(prompt, target, subject, edits, how)
    if regime not in ("joint", "sequential"):
        raise ConfigError(f"unknown regime {regime!r}", "Known: joint, sequential")
    if out is not None:
        _output.check_free(out, "patch.json", force)
    from errata.api import edit as make

    earlier = _earlier(after)
    named = {} if earlier is None else earlier.meta
    base = model.model if _targets.given(model) else named.get("model") or model.model
    chosen = editor.build(base)
    for request in requests:
        chosen.check(request)  # before a model is loaded for nothing
    # with an earlier patch, that it is of another model is to be said first
    ready = None if earlier is not None else lambda: chosen.ready(base)
    lm = _targets.load_base(model, named.get("model"), named.get("revision"), after or "", ready)
    if earlier is not None:
        earlier.check(lm)
    clashes = _clashes(requests, earlier, after)
    for text in clashes:
        _output.note(text)
    if dry_run:
        _plan(lm, chosen, requests, out, clashes, json)
        return
    started = time.perf_counter()
    label = f"{editor.editor}: {_output.counted(len(requests), 'edit')}"
    with _output.progress(label) as step:
        chosen.prepare(lm)
        patch = make(lm, requests, editor=chosen, after=earlier, regime=regime, progress=step)
    took = time.perf_counter() - started
    look = _look(lm, patch, requests, earlier)
    saved = _save(look.patch, out, force)
    brief = len(requests) > SHOWN if brief is None else brief
    told = {"after": None if after is None else str(after), "contradictions": clashes}
    _show(lm, chosen, look, also or [], chat, took, saved, brief, told, json)
    if require and look.taken < len(requests):
        missed = _output.counted(len(requests) - look.taken, "edit")
        raise GateError(f"{missed} of {len(requests)} not taken, --require allows none")


def _requests(
    prompt: str | None,
    target: str | None,
    subject: str | None,
    edits: Path | None,
    how: Mapping[str, Any],
) -> list[Edit]:
    if edits is not None:
        if prompt is not None or target is not None or subject is not None:
            raise ConfigError(
                "--edits replaces --prompt, --target and --subject", "Give one or the other."
            )
        from errata.data import load_edits

        told = {name: value for name, value in how.items() if value != HOW[name]}
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


@dataclass(frozen=True)
class _Look:
    """What became of the requests.

    Attributes:
        patch: The patch, with what the model answers to each of its edits.
        requests: The edits asked for now.
        earlier: The patch that it builds on.
        results: Of the requests, in order.
    """

    patch: Patch
    requests: Sequence[Edit]
    earlier: Patch | None
    results: Sequence[Mapping[str, Any]]

    @property
    def taken(self) -> int:
        """Number of requests whose target is the model's greedy answer now."""
        return sum(bool(result["taken"]) for result in self.results)


def _look(lm: LM, patch: Patch, requests: Sequence[Edit], earlier: Patch | None) -> _Look:
    """Ask for all edits of the patch before and after it, and note the answers in the patch."""
    from errata.patch.compare import answers

    # an editor may leave earlier edits out of its patch, and a strategy may add some
    edits = list(dict.fromkeys([*requests, *patch.edits]))
    targets = [edit.target for edit in edits]
    with nullcontext() if earlier is None else earlier.applied(lm):
        before = answers(lm, edits, targets)
    with patch.applied(lm):
        after = answers(lm, edits, targets)
        missed = [i for i, found in enumerate(after) if found is None or not found[1]]
        says = lm.generate([edits[i] for i in missed], SAID) if missed else []
    results: dict[Edit, dict[str, Any]] = {}
    for edit, old, new in zip(edits, before, after, strict=True):
        assert old is not None  # each has a target
        assert new is not None
        results[edit] = {
            "taken": new[1], "taken_before": old[1], "p_before": old[0], "p_after": new[0],
        }  # fmt: skip
    for i, text in zip(missed, says, strict=True):
        results[edits[i]]["says_after"] = text
    noted = replace(patch, results=tuple(results[edit] for edit in patch.edits))
    return _Look(noted, requests, earlier, [results[edit] for edit in requests])


def _save(patch: Patch, out: Path | None, force: bool) -> dict[str, Any] | None:
    if out is None:
        return None
    folder = patch.save(out, force=force)
    files, count = _output.folder_size(folder)
    return {"folder": str(folder), "files": files, "bytes": count}


def _plan(
    lm: LM,
    editor: Editor,
    requests: Sequence[Edit],
    out: Path | None,
    clashes: Sequence[str],
    json: bool,
) -> None:
    document = {
        "dry_run": True,
        "model": lm.name,
        "editor": editor.name,
        "edits": len(requests),
        "sites": _views.sites(lm),
        "settings": _views.settings(editor),
        **_views.estimate(lm, editor, requests),
        "moments": _views.moments_state(lm, editor),
        "contradictions": list(clashes),
        "out": None if out is None else str(out),
    }
    for request in requests:
        lm.row_of(request, subject=True)
    if json:
        _output.print_json(document)
        return
    console = _output.out()
    console.print(_views.headline(lm))
    table = _output.table("what", "value")
    table.add_row("editor", f"{editor.name}: {editor.title}")
    table.add_row("edits", str(len(requests)))
    layers = document["layers"]
    shown = ", ".join(map(str, layers)) if isinstance(layers, list) else str(layers)
    table.add_row("blocks", shown or "none")
    if document["moments"] is not None:
        table.add_row("second moments", document["moments"])
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
    look: _Look,
    also: Sequence[str],
    how: ChatOptions,
    took: float,
    saved: dict[str, Any] | None,
    brief: bool,
    told: Mapping[str, Any],
    json: bool,
) -> None:
    from errata.api import compare
    from errata.locate.contexts import other_forms

    full = list(look.requests) if json else [] if brief else list(look.requests)
    prompts = [*full, *other_forms(full, getattr(editor.config, "contexts", None)), *also]
    views = []
    if prompts:
        views = compare(
            lm, look.patch, prompts, before=look.earlier, chat=how.check(), system=how.system
        )
    count = len(look.requests)
    if json:
        _output.print_json(
            {
                "model": lm.name,
                "revision": lm.revision,
                "editor": editor.name,
                "settings": _views.settings(editor),
                "seconds": took,
                "edits": count,
                "taken": look.taken,
                **told,
                "prompts": [view.as_dict() for view in views],
                "patch": {**_views.facts(look.patch), "saved": saved},
            }
        )
        return
    console = _output.out()
    console.print(_views.headline(lm))
    changed = _views.what_changed(look.patch)
    console.print(f"{editor.title} · {changed} · {_output.seconds(took)}")
    if brief:
        _list(console, look)
    if views:
        old = "before" if look.earlier is None else f"before, under {told['after']}"
        console.print(_views.before_after(views, (old, "after")))
    console.print(f"{look.taken} of {_output.counted(count, 'edit')} taken")
    if look.taken < count:
        _output.note(
            f"not taken: try more steps, another block or another editor; errata ls editors "
            f"{editor.name} lists what can be set"
        )
    if saved is None:
        console.print("Not saved: add --out DIR. Undo: nothing was written to the model.")
    else:
        files = ", ".join(saved["files"])
        console.print(
            f"Saved {saved['folder']}/ ({files}; {_output.size(saved['bytes'])})."
            " Undo: nothing was written to the model.",
            soft_wrap=True,
        )


def _list(console: Console, look: _Look) -> None:
    """Print one line per edit: all that were not taken, and the first of those that were."""
    from rich.text import Text

    listed = 0
    for edit, result in zip(look.requests, look.results, strict=True):
        if result["taken"]:
            listed += 1
            if listed > LISTED:
                continue
        text = Text.assemble(
            _views.mark(result["taken"]),
            _views.asked(edit.prompt, edit.chat),
            " → ",
            (edit.target.strip(), "bold"),
        )
        text.append(f"  {result['p_before']:.4f} → {result['p_after']:.4f}")
        if "says_after" in result:
            text.append(f"  says {_views.said(result['says_after'])}")
        console.print(text)
    if listed > LISTED:
        console.print(f"… and {listed - LISTED} more that were taken")
