"""`errata demo`: the main job in two minutes, on the model that ships or on a real one."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _summary, _views
from errata.cli._options import JsonFlag, ModelOptions, expand

if TYPE_CHECKING:
    from rich.table import Table

    from errata.api import View
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.patch import Patch

EXAMPLES = ("errata demo", "errata demo --quick --json", "errata demo --model smollm2")

EDITORS = ("none", "ft", "rome")
NUMBERS = {3: "Three", 4: "Four", 5: "Five", 6: "Six", 7: "Seven"}
METRICS = ("reliability", "generality", "locality", "average")
CASES, QUICK_CASES = 40, 4
SEED = 0
WORDS = 8  # tokens of the model's own words


@dataclass(frozen=True)
class Question:
    """One question of the demonstration.

    Attributes:
        role: `edit`, `paraphrase`, `two hops` or `neighbour`.
        prompt: The prompt.
        expected: How the answer should begin after the edit; for a neighbour, the true answer.
        view: What the model says.
    """

    role: str
    prompt: str
    expected: str
    view: View

    @property
    def right(self) -> bool:
        """Whether the edited model's own words begin with the expected answer.

        For a neighbour: whether they begin as they did, be that right or wrong.
        """
        after = _words(self.view.says_after)
        if self.role == "neighbour":
            before = _words(self.view.says_before)
            return after == before or (
                after.startswith(self.expected) and before.startswith(self.expected)
            )
        return after.startswith(self.expected)


@expand
def demo(
    model: ModelOptions,
    cases: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Benchmark cases for the comparison of editors; default {CASES} on pocket, and "
            "no comparison on other models, which do not know the built-in world.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"Only {QUICK_CASES} benchmark cases.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Run folder; default runs/<date>_demo."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Edit one fact, look at it from all sides, then compare editors (on the built-in model)."""
    folder = out or _output.fresh(Path("runs") / f"{time.strftime('%Y-%m-%d')}_demo")
    _output.check_free(folder, "summary.json", force=False)
    started = time.perf_counter()
    lm = model.load()
    case, patch, questions, facts = _edit(lm, folder)
    if not json:
        _show_edit(lm, case, patch, questions, facts)
    from errata.world.shipped import knows_world

    if cases is None and knows_world(lm.name):
        cases = QUICK_CASES if quick else CASES
    summaries = [] if cases is None else _compare(lm, cases, folder)
    patch.save(folder / "patch")
    document = {
        "model": lm.name,
        "edit": {
            **{key: case[key] for key in ("prompt", "subject", "truth", "target")},
            **facts,
            "questions": [
                {"role": q.role, "expected": q.expected, "right": q.right, **q.view.as_dict()}
                for q in questions
            ],
        },
        "comparison": summaries,
        "run": str(folder),
        "seconds": time.perf_counter() - started,
    }
    _write(folder, document)
    if json:
        _output.print_json(document)
        return
    console = _output.out()
    if summaries:
        number = summaries[0]["cases"]
        count = NUMBERS.get(len(summaries), str(len(summaries)))
        console.print(
            f"{count} editors on {number} facts of the built-in world, one edit at a time:"
        )
        console.print(_table(summaries, _output.narrow(console)))
    console.print(
        f"Records and the patch: {folder}/ · {_output.seconds(document['seconds'])}",
        soft_wrap=True,
    )
    console.print(f"Take it along: errata export {folder}/patch --to lora", soft_wrap=True)


def _editor(name: str, lm: LM, folder: Path) -> Editor:
    """Return an editor with the settings that suit the model.

    Another model than the shipped one gets the world's text to count its statistics on.
    """
    from errata.editors import editors, get_editor
    from errata.editors.fitting import fitted
    from errata.world.shipped import knows_world

    cls = editors.load(name)
    own: dict[str, Any] = {}
    if not knows_world(lm.name) and "moments" in cls.needs:
        own["moments_text"] = "world"  # needs no network
    return fitted(get_editor(name, own, model=lm.name), lm)


def _compared(lm: LM) -> list[str]:
    """Return the editors of the comparison: also those whose networks ship with the model."""
    from errata.editors import editors
    from errata.nets.weights import CONFIG, SHIPPED
    from errata.world.shipped import is_shipped

    there = [name for name in editors.entries if (SHIPPED / name / CONFIG).is_file()]
    return [*EDITORS, *(there if is_shipped(lm.name) else [])]


def _edit(lm: LM, folder: Path) -> tuple[Mapping[str, Any], Patch, list[Question], dict[str, Any]]:
    """Make the edit and ask about it from all sides."""
    from errata.api import compare, edit
    from errata.model.weights import weight_fingerprint
    from errata.world import demo_case, knows_world, real_case

    case = demo_case() if knows_world(lm.name) else real_case()
    asked = [("edit", case["prompt"], case["target"])]
    asked += [("paraphrase", prompt, case["target"]) for prompt in case["paraphrases"]]
    if "two_hop" in case:
        asked.append(("two hops", case["two_hop"], case["two_hop_target"]))
    asked += [("neighbour", prompt, truth) for prompt, truth in case["neighbours"]]
    before, editor = lm.fingerprint, _editor("rome", lm, folder)
    started = time.perf_counter()
    editor.prepare(lm)  # draws its own progress
    with _output.status("one edit by ROME"):
        patch = edit(lm, case["prompt"], case["target"], subject=case["subject"], editor=editor)
        took = time.perf_counter() - started
        views = compare(lm, patch, [prompt for _, prompt, _ in asked], new_tokens=WORDS)
    questions = [Question(*one, view) for one, view in zip(asked, views, strict=True)]
    same = weight_fingerprint(lm.model) == before
    facts = {
        "editor": "rome",
        "edit_seconds": took,
        "patch": _views.facts(patch),
        "undo_bit_exact": same,
        "weights": before,
    }
    return case, patch, questions, facts


def _words(text: str) -> str:
    return " ".join(text.partition(".")[0].split())


def _show_edit(
    lm: LM,
    case: Mapping[str, Any],
    patch: Patch,
    questions: Sequence[Question],
    facts: Mapping[str, Any],
) -> None:
    from rich.text import Text

    console = _output.out()
    console.print(_views.headline(lm))
    console.print(
        f"Edit: “{case['prompt']} …” from {case['truth']} to {case['target']}, by ROME.\n"
    )
    table = _output.table("", "question", "before", "after", "")
    role = ""
    for question in questions:
        if role and role != question.role:
            table.add_section()
        label = "" if role == question.role else question.role
        role = question.role
        mark = Text("✓", style="green") if question.right else Text("✗", style="red")
        said = (_words(question.view.says_before), _words(question.view.says_after))
        table.add_row(label, question.prompt, *said, mark)
    console.print(table)
    console.print("✓ follows the edit; for a neighbour: begins as it did.")
    undone = "bit for bit" if facts["undo_bit_exact"] else "NOT exact"
    console.print(
        f"{_views.what_changed(patch)} · {_output.seconds(facts['edit_seconds'])}\n"
        f"Undone {undone}: weights {facts['weights'][:12]} before and after.\n"
    )


def _compare(lm: LM, count: int, folder: Path) -> list[dict[str, Any]]:
    from errata.data import load_cases
    from errata.evaluation import evaluate

    data = load_cases("world", "test", count, seed=SEED)
    summaries = []
    for name in _compared(lm):
        with _output.progress(f"{name} on {len(data)} facts") as step:
            editor = _editor(name, lm, folder)
            result = evaluate(lm, editor, data, out=folder / name, progress=step, seed=SEED)
        summaries.append(dict(result.summary))
    return summaries


def _table(summaries: Sequence[Mapping[str, Any]], narrow: bool) -> Table:
    """Return the comparison; where there are few columns, without its intervals."""
    names = [_summary.SHORT[metric] if narrow else metric for metric in METRICS]
    table = _output.table("editor", *names, "ms per edit", right=range(1, 6))
    for summary in summaries:
        cells = []
        for metric in METRICS:
            low_high = (summary.get("ci95") or {}).get(metric)
            span = f"\n{low_high[0]:.2f}–{low_high[1]:.2f}" if low_high and not narrow else ""
            cells.append(_output.rate(summary[metric]) + span)
        per_edit = summary["seconds"].get("per_edit")
        shown = "–" if not per_edit or summary["editor"] == "none" else f"{per_edit * 1000:.0f}"
        table.add_row(summary["editor"], *cells, shown)
    return table


def _write(folder: Path, document: Mapping[str, Any]) -> None:
    from errata.store.files import write_atomically

    text = jsonlib.dumps(document, ensure_ascii=False, indent=1)
    write_atomically(folder / "summary.json", (text + "\n").encode())
    lines = [f"# errata demo on {document['model']}"]
    if document["comparison"]:
        lines += ["", f"| editor | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
    for summary in document["comparison"]:
        cells = [summary["editor"], *(_output.rate(summary[metric]) for metric in METRICS)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| question | expected | before | after |", "|---|---|---|---|"]
    for q in document["edit"]["questions"]:
        said = (_words(q["says_before"]), _words(q["says_after"]))
        lines.append(f"| {q['prompt']} | {q['expected']} | {said[0]} | {said[1]} |")
    write_atomically(folder / "summary.md", ("\n".join(lines) + "\n").encode())
