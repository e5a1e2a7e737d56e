"""errata and EasyEdit in turn: the same model, records, contexts, second moments and settings.

`python -m benchmarks.against_easyedit --easyedit CHECKOUT` times ROME (one edit at a time, and side
by side in errata), MEMIT and AlphaEdit (a batch), FT, GRACE and the questions of records, in CPU
seconds, compares the changes of weights, the values and the answers, and measures what each holds
at its peak above what the process held before. Without a checkout it says so and measures nothing.
A method that a release of EasyEdit does not have is left out and named: the package `easyeditor` of
the package index is of October 2023 and has ROME, MEMIT, FT and the questions; unpacked, it serves
as a checkout.

What stands between the two is in `benchmarks.easyedit`. `--only questions` compares those alone,
`--only "ROME MEMIT"` these two; `--result NAME` keeps what was found under another name.

An environment of its own, where the packages that its modules import can be had (beside errata's:
datasets, matplotlib, numpy, pyyaml; for its questions also nltk, scikit-learn, openai, rouge and
sentence-transformers, whose absence only leaves that line out):

```console
$ python3 -m venv .venv-easyedit && .venv-easyedit/bin/pip install -e . datasets matplotlib nltk
$ git clone https://github.com/zjunlp/EasyEdit    # or: pip download --no-deps easyeditor, unzip
$ .venv-easyedit/bin/python -m benchmarks.against_easyedit --easyedit EasyEdit
```
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _common as common
from benchmarks.easyedit import EasyEdit, checkout, importing
from benchmarks.memory import _status
from benchmarks.rome_edit import context_templates, random_moment

ROME, MEMIT = 20, 5
"""Contexts beside the bare prompt."""

AIMS = {
    "ROME": 6.0,
    "MEMIT": 8.0,
    "AlphaEdit": 8.0,
    "FT": 4.0,
    "GRACE": 4.0,
    "questions": 4.0,
    "again": 6.0,
}
"""Times as fast as EasyEdit, in float32; again: where the unedited answers are known."""

ROUGH = {
    "ROME": 14.0,
    "MEMIT": 18.0,
    "AlphaEdit": 18.0,
    "FT": 4.0,
    "GRACE": 4.0,
    "questions": 10.0,
    "again": 14.0,
}
"""The same where optimisations multiply in bfloat16 (`--compute auto`, `bfloat16`), and questions
are asked of a model in bfloat16."""


# ---------------------------------------------------------------------- both


def distance(lm: Any, theirs: Any, mine: Any) -> float:
    """Return how far the changes of weights are apart: the largest relative difference of any."""
    from errata.patch.deltas import weight_deltas

    gaps, own = [], weight_deltas(lm, mine.changes)
    for layer, delta in theirs.items():
        gaps.append(float((own[lm.site(layer).weight].double() - delta).norm() / delta.norm()))
    return max(gaps)


def between_entries(lm: Any, theirs: Any, mine: Any) -> float:
    """Return how far keys and values are apart: the largest relative difference of either."""
    from errata.editors.grace.codebook import Codebook

    (module,) = mine.changes
    book, gaps = Codebook.restored(module, mine.state), []
    for own, other in ((book.keys[0], theirs[0]), (book.values[0], theirs[1])):
        gaps.append(float((own.double() - other.double()).norm() / other.double().norm()))
    return max(gaps)


def compare(lm: Any, cases: Sequence[Any], folder: Path, args: Any) -> list[common.Line]:
    """Time both in turn and compare what they make."""
    from safetensors.torch import load_file

    from errata.editors import get_editor

    layers = tuple(args.layer - n for n in range(args.blocks))[::-1]
    path = random_moment(lm, layers, common.CACHE)
    moments = {layer: load_file(path)[f"mom2.{layer}"] for layer in layers}
    edits = [case.edits[0] for case in cases]
    shared = {"steps": args.steps, "lr": 0.5, "weight_decay": 0.5, "clamp": 4.0,
              "kl_factor": 0.0625, "contexts": context_templates(lm)}  # fmt: skip
    common_settings = {"moments_file": str(path), "sink_prefix": "off"}
    lines = []
    aims = AIMS if args.compute == "float32" else ROUGH
    wanted = set(args.only.split()) or {*aims}

    def timed(
        name: str,
        what: str,
        more: dict[str, Any],
        ways: dict[str, Callable[[], Any]],
        of: str = "weight changes",
        apart: Callable[[Any, Any, Any], float] = distance,
    ) -> list[common.Line]:
        if name not in wanted:
            return []
        try:
            timings, peaks, found = watched(ways, args)
        except ImportError as error:
            print(f"{name} is left out, this release of EasyEdit does not have it: {error}")
            return []
        pairs = zip(found["theirs"], found["mine"], strict=True)
        gap = max(apart(lm, a, b) for a, b in pairs)
        contexts = f", {len(more['contexts']) + 1} contexts" if "contexts" in more else ""
        return [
            common.line(
                f"{name}, {what}", lm.name, "EasyEdit", timings["theirs"], timings["mine"],
                args.device, equal=f"{of} differ by {gap:.1e} (relative)",
                note=f"{more['steps']} steps{contexts}; moments ready", aim=aims.get(name),
            ),
            common.Line(
                f"{name}, {what}: memory at the peak", lm.name, "EasyEdit",
                peaks["theirs"] / max(peaks["mine"], 1e-9), peaks["theirs"], peaks["mine"],
                unit="MiB", note="above what the process held before",
            ),
        ]  # fmt: skip

    with importing(folder) as load:
        theirs = EasyEdit(lm, load, moments, folder)
        some, own = edits[: args.edits], {**shared, "contexts": shared["contexts"][:ROME]}
        rome = get_editor("rome", {**own, **common_settings, "layer": args.layer})
        rome.prepare(lm)
        plain = lambda: theirs.rome(some, args.layer, own)  # noqa: E731
        for what, mine in (
            ("one by one", lambda: [rome.edit_one(lm, [edit]) for edit in some]),
            (f"{len(some)} side by side", lambda: rome.edit(lm, [[edit] for edit in some])),
        ):
            lines += timed("ROME", what, own, {"theirs": plain, "mine": mine})
        batch = {**shared, "contexts": shared["contexts"][-MEMIT:]}
        for method, name, extra in (
            ("MEMIT", "memit", {"mom2_weight": 100.0}),
            ("AlphaEdit", "alphaedit", {"l2": 10.0, "nullspace_threshold": 1.0}),
        ):
            editor = get_editor(name, {**batch, **extra, **common_settings, "layers": layers})
            editor.prepare(lm)
            if name == "alphaedit" and method in wanted:
                theirs.projectors(layers, extra["nullspace_threshold"])
            ways = {
                "theirs": lambda m=method, e=extra: [
                    theirs.batch(m, edits, layers, {**batch, **e})
                ],
                "mine": lambda e=editor: [e.edit_one(lm, edits)],
            }
            lines += timed(method, f"a batch of {len(edits)}", batch, ways)
        for what, ways in _ft(lm, theirs, some, args.layer).items():
            lines += timed("FT", what, FT, ways)
        for what, ways in _grace(lm, theirs, some).items():
            lines += timed("GRACE", what, GRACE, ways, "keys and values", between_entries)
        if "questions" in wanted:
            settings = theirs.settings("ROME", layers, shared)
            lines += questions(lm, cases, theirs, settings, args, aims)
    return lines


FT: dict[str, Any] = {"steps": 5, "lr": 1e-4, "weight_decay": 0.0}
"""Few steps: Adam's first ones divide by the root of nearly nothing and carry rounding on."""

FT_OURS = {"objective": "prompt_last", "stop_loss": 1e-2, "norm_constraint": None}


def _ft(
    lm: Any, theirs: EasyEdit, edits: Sequence[Any], layer: int
) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return fine-tuning by both, with the loss of the first publications."""
    from errata.editors import get_editor

    editor = get_editor("ft", {**FT, **FT_OURS, "layers": [layer]})
    given = {**FT, "clamp": None, "kl_factor": None}
    return _ways(lm, editor, edits, lambda: theirs.ft(edits, layer, given))


GRACE: dict[str, Any] = {"steps": 20, "lr": 0.1, "radius": 1.0}
"""Its published rate of 1 is for values that start at random; here they start as the layer's."""


def _grace(
    lm: Any, theirs: EasyEdit, edits: Sequence[Any]
) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return a codebook by both, at the block that errata takes for this model."""
    from errata.editors import get_editor

    editor = get_editor("grace", {**GRACE, "start": "warm", "compat": True})
    layer = editor.edited_layers(lm)[0]
    return _ways(lm, editor, edits, lambda: theirs.grace(edits, layer, GRACE))


def _ways(
    lm: Any, editor: Any, edits: Sequence[Any], theirs: Callable[[], Any]
) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return edits by both, each by itself and in errata side by side as well."""
    return {
        "one by one": {
            "theirs": theirs, "mine": lambda: [editor.edit_one(lm, [edit]) for edit in edits],
        },
        f"{len(edits)} side by side": {
            "theirs": theirs, "mine": lambda: editor.edit(lm, [[edit] for edit in edits]),
        },
    }  # fmt: skip


def watched(
    ways: dict[str, Callable[[], Any]], args: Any
) -> tuple[dict[str, common.Timing], dict[str, float], dict[str, Any]]:
    """Run all ways in turn.

    Returns:
        Timings; the MiB that each holds at its peak above what the process held before it; and what
        each returned last.
    """
    timings, peaks, found = {name: common.Timing() for name in ways}, {}, {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            before = _status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak counts from here
            spent, last = common.interleaved({name: way}, 1, args.device)
            peaks[name] = _status("VmHWM") - before
            timings[name].cpu += spent[name].cpu
            timings[name].wall += spent[name].wall
            found |= last
    return timings, peaks, found


def questions(
    lm: Any,
    cases: Sequence[Any],
    theirs: EasyEdit,
    settings: Any,
    args: Any,
    aims: dict[str, float],
) -> list[common.Line]:
    """Compare the questions of records; an edit of no strength stands for what is between them.

    EasyEdit asks before and after an edit. errata keeps the unedited answers in its cache, so that
    other editors on the same records ask after it only.
    """
    import errata
    from errata.evaluation.questions import questions_of

    rough = aims is ROUGH
    asking = errata.load(args.model, device=args.device, dtype="bfloat16") if rough else lm

    try:
        theirs.answers(cases[:1], settings)
    except ImportError as error:
        print(f"its questions are left out: {error}")
        return []

    def mine() -> list[float]:
        asked = [q for case in cases for q in questions_of(asking, case, 1, False)]
        scores = asking.score([question.row for question in asked])
        return [sum(r == 0 for r in score.ranks) / len(score.ranks) for score in scores]

    def twice() -> list[Any]:
        theirs.answers(cases, settings)
        return theirs.answers(cases, settings)

    mine()  # what is made once per model
    lines = []
    for what, aim, plain in (
        ("questions of a record", "questions", lambda: theirs.answers(cases, settings)),
        ("questions before and after, unedited answers kept", "again", twice),
    ):
        timings, found = common.interleaved(
            {"theirs": plain, "mine": mine}, args.repeats, args.device
        )
        values = [one[0] if isinstance(one, list) else one for one in found["theirs"]]
        moved = sum(abs(a - b) > 1e-6 for a, b in zip(values, found["mine"], strict=True))
        told = f"{what}, the model in bfloat16" if rough else what
        lines.append(common.line(
            told, lm.name, "EasyEdit", timings["theirs"], timings["mine"],
            args.device, equal=f"{moved} of {len(values)} answers differ",
            note=f"{len(cases)} records; of the unedited model", aim=aims[aim],
        ))  # fmt: skip
    return lines


def main() -> None:
    """Compare on a model, if there is a checkout."""
    args = common.options(
        __doc__, records=20, repeats=1, steps=20, edits=4, layer=7, blocks=5,
        model="smollm2", easyedit="", compute="float32", only="", result="",
    )  # fmt: skip
    folder = checkout(args.easyedit)
    if folder is None:
        there = f"no checkout of EasyEdit at {args.easyedit!r}" if args.easyedit else "no checkout"
        print(f"{there}: nothing is compared. Give one: --easyedit FOLDER (see the docstring)")
        return
    if args.quick:
        args.steps, args.edits = 4, 2
    import errata

    lm = common.prepared(errata.load(args.model, device=args.device, compute=args.compute))
    lines = compare(lm, common.records(common.SMALL, args.records), folder, args)
    rough = "" if args.compute == "float32" else "_rough"
    common.finish(args.result or f"against_easyedit{rough}", args, lines)


if __name__ == "__main__":
    main()
