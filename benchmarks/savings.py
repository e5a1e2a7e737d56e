"""What need not be computed: each saving with and without, in turn, on a real model.

The same code runs both ways; without, the one function that decides on the saving says no:

* the essence row: run only where no bare prompt's row holds it (`errata.locate.essence`);
* keys: passes begin at the block that was changed last, and keys that are remembered are those
  that were read (`errata.locate.keys.Known`);
* contexts: keys and values of the texts in front of prompts, kept from edit to edit
  (`errata.locate.beginnings`);
* evaluation: edited passes begin from hidden states of the unedited ones (`errata.model.kept`);
* products: float32 by the faster of two libraries (`errata.model.multiplying.quick_products`).

The results are compared: changes of weights, answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import _common as common
from benchmarks.memit_edit import CONTEXTS
from benchmarks.rome_edit import context_templates, random_moment

ROME, JOINT = 5, (3, 4, 5, 6, 7)


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Put another function in the place of one inside a `with` block."""
    own = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, own)


@contextmanager
def without(*savings: str) -> Iterator[None]:
    """Compute what need not be computed; savings are named as in the list above."""
    from contextlib import ExitStack, nullcontext

    from errata.editors import joint_reads
    from errata.evaluation import session
    from errata.locate import essence, rows
    from errata.model import lm as models

    def whole(lm: Any, given: Any, per_edit: int, *, spare: bool) -> Any:
        return essence.run_rows(lm, given, per_edit, spare=False)

    known: dict[str, tuple[Any, str, Any]] = {
        "essence": (rows, "run_rows", whole),
        "keys": (joint_reads, "first_changed", lambda lm, patches: None),
        "contexts": (rows, "beginnings", lambda lm, contexts: None),
        "evaluation": (session, "kept_below", lambda editor, lm: None),
        "products": (models, "quick_products", lambda lm: nullcontext()),
    }
    with ExitStack() as stack:
        for name in savings:
            stack.enter_context(replaced(*known[name]))
        yield


def editor_of(lm: Any, name: str, steps: int, contexts: int) -> Any:
    """Return an editor with published settings but for its contexts; everything is ready."""
    from errata.editors import get_editor

    own = {"layer": ROME} if name == "rome" else {"layers": JOINT}
    moments = str(random_moment(lm, tuple(sorted({ROME, *JOINT})), common.CACHE))
    given = {**own, "steps": steps, "contexts": context_templates(lm)[:contexts],
             "moments_file": moments, "stop_loss": 0.0}  # fmt: skip
    if name == "alphaedit":
        given["nullspace_threshold"] = 1.0  # half the directions of random keys are below it
    editor = get_editor(name, given)
    editor.prepare(lm)
    return editor


def distance(lm: Any, one: Any, other: Any) -> float:
    """Return the largest relative difference of the changes of any weight."""
    from errata.patch.deltas import weight_deltas

    pairs = zip(one, other, strict=True)
    both = [(weight_deltas(lm, a.changes), weight_deltas(lm, b.changes)) for a, b in pairs]
    return max(float((a[k] - b[k]).norm() / a[k].norm()) for a, b in both for k in a)


def edits_line(lm: Any, args: Any, name: str, saving: str, count: int) -> common.Line:
    """Measure one saving in the edits of one editor."""
    cases = common.records(common.SMALL, count)
    contexts = 20 if name == "rome" else CONTEXTS
    editor = editor_of(lm, name, args.steps, contexts)
    edits = [case.edits[0] for case in cases]
    groups = [[edit] for edit in edits] if name == "rome" else [edits]

    def plain() -> Any:
        with without(*saving.split("+")):
            return editor.edit(lm, groups)

    ways: dict[str, Callable[[], Any]] = {"without": plain, "with": lambda: editor.edit(lm, groups)}
    timings, found = common.interleaved(ways, args.repeats, args.device)
    gap = distance(lm, found["without"], found["with"])
    held = sum(edit.prompt.startswith(str(edit.subject)) for edit in edits)
    return common.line(
        f"{name}, {count} edits: {saving}", lm.name, "the same without", timings["without"],
        timings["with"], args.device, equal=f"weight changes differ by {gap:.1e} (relative)",
        note=f"{args.steps} steps, {contexts + 1} contexts; "
        f"{held} of {count} prompts begin with the subject",
    )  # fmt: skip


def evaluation_line(lm: Any, args: Any, saving: str = "evaluation") -> common.Line:
    """Measure evaluations of edits of one block, the unedited model asked in each anew."""
    import os

    from errata.evaluation import evaluate

    cases = common.records(common.SMALL, args.records)
    editor = editor_of(lm, "rome", 1, 0)

    def run() -> Any:
        with tempfile.TemporaryDirectory() as cache:
            earlier = os.environ.get("ERRATA_CACHE")
            os.environ["ERRATA_CACHE"] = str(Path(cache))
            try:
                return evaluate(lm, editor, cases, bootstrap=0).records
            finally:
                if earlier is None:
                    del os.environ["ERRATA_CACHE"]
                else:
                    os.environ["ERRATA_CACHE"] = earlier

    def plain() -> Any:
        with without(saving):
            return run()

    timings, found = common.interleaved({"without": plain, "with": run}, args.repeats, args.device)
    pairs = [
        pair
        for one, other in zip(found["without"], found["with"], strict=True)
        for pair in zip(one["questions"], other["questions"], strict=True)
    ]
    moved = sum(a["hits"] != b["hits"] for a, b in pairs)
    gap = max((abs(a["nll"] - b["nll"]) for a, b in pairs if "nll" in a), default=0.0)
    return common.line(
        f"evaluation, both passes, edits of block {ROME} of {lm.n_layers}: {saving}", lm.name,
        "the same without", timings["without"], timings["with"], args.device,
        equal=f"{moved} of {len(pairs)} hits differ, NLL by at most {gap:.1e}",
        note=f"{args.records} records; one step of ROME on the bare prompt is in both",
    )  # fmt: skip


def main() -> None:
    """Measure all of them."""
    args = common.options(
        __doc__, records=20, repeats=2, steps=6, model="smollm2", edits=4, only=""
    )
    if args.quick:
        args.steps, args.edits = 2, 2
    import errata

    lm = common.prepared(errata.load(args.model, device=args.device))
    ways: dict[str, Callable[[], common.Line]] = {
        "rome-essence": lambda: edits_line(lm, args, "rome", "essence", args.edits),
        "memit-essence": lambda: edits_line(lm, args, "memit", "essence", args.records),
        "rome-contexts": lambda: edits_line(lm, args, "rome", "contexts", args.edits),
        "memit-contexts": lambda: edits_line(lm, args, "memit", "contexts", args.records),
        "memit-keys": lambda: edits_line(lm, args, "memit", "keys", args.records),
        "alphaedit-keys": lambda: edits_line(lm, args, "alphaedit", "keys", args.records),
        "alphaedit": lambda: edits_line(lm, args, "alphaedit", "essence+keys", args.records),
        "evaluation": lambda: evaluation_line(lm, args),
        "rome-products": lambda: edits_line(lm, args, "rome", "products", args.edits),
        "memit-products": lambda: edits_line(lm, args, "memit", "products", args.records),
        "alphaedit-products": lambda: edits_line(lm, args, "alphaedit", "products", args.records),
        "evaluation-products": lambda: evaluation_line(lm, args, "products"),
    }
    lines = []
    for name in args.only.split() or ways:
        lines.append(ways[name]())
        print(lines[-1], flush=True)
    common.finish("savings", args, lines)


if __name__ == "__main__":
    main()
