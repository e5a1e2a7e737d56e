"""The questions of an evaluation, one by one: which passed, what was expected, what is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from errata.case import Edit
from errata.cli import _output, _views

if TYPE_CHECKING:
    from rich.console import Console

    from errata.model.lm import LM
    from errata.patch import Patch

SAID = 12  # tokens of the model's own words in place of an answer that failed
SPARE = 4  # tokens beyond the expected answer


def facts_of(records: Sequence[Mapping[str, Any]], lm: LM, patch: Patch) -> list[dict[str, Any]]:
    """Return every case with its questions; where one failed, with what the model says instead.

    A question has passed if every token of its answer counts as a hit. Of unrelated questions what
    is expected is what the model says without the patch.
    """
    cases: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for record in records:
        questions = [_question(entry) for entry in record["questions"]]
        failed += [question for question in questions if not question["ok"]]
        error = record.get("error")
        ok = error is None and all(question["ok"] for question in questions)
        cases.append({"id": record["id"], "ok": ok, "error": error, "questions": questions})
    _say(failed, lm, patch)
    return cases


def _question(entry: Mapping[str, Any]) -> dict[str, Any]:
    kind = "edit" if entry["kind"] == "reliability" else entry["kind"]
    found = {
        "kind": kind,
        "name": entry["name"],
        "prompt": entry["prompt"],
        "expected": entry["target"],
        **{name: entry[name] for name in ("joiner", "chat", "system") if name in entry},
        "score": entry["score"],
        "k": entry["k"],
        "ok": entry["score"] == 1.0,
    }
    if entry.get("hops", {}).get("failed"):
        found["hops_failed"] = entry["hops"]["failed"]
    if not found["ok"]:
        found["predicted"] = entry.get("predicted")
    return found


def _edit(question: Mapping[str, Any]) -> Edit:
    """Return a question the way it was asked."""
    how = {name: question[name] for name in ("joiner", "chat", "system") if name in question}
    return Edit(question["prompt"], question["expected"], **how)


def _say(failed: Sequence[dict[str, Any]], lm: LM, patch: Patch) -> None:
    """Add the model's own words to the questions that failed."""
    if not failed:
        return
    asked = [_edit(question) for question in failed]
    prompts = lm.rows(asked)
    lengths = [max(SAID, len(lm.row_of(edit).labels) + SPARE) for edit in asked]
    unrelated = [i for i, question in enumerate(failed) if question["kind"] == "locality"]
    before = lm.generate([prompts[i] for i in unrelated], [lengths[i] for i in unrelated])
    with patch.applied(lm):
        says = lm.generate(prompts, lengths)
    for question, text in zip(failed, says, strict=True):
        question["says"] = text
    for i, text in zip(unrelated, before, strict=True):
        failed[i]["expected"] = text


def counts(cases: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many questions there are, and how many of them failed."""
    asked = [question for case in cases for question in case["questions"]]
    bad = sum(not question["ok"] for question in asked)
    return {"questions": len(asked), "passed": len(asked) - bad, "failed": bad}


def show(console: Console, cases: Sequence[Mapping[str, Any]]) -> None:
    """Print what failed: the question, then what was expected and what is said instead."""
    from rich.text import Text

    for case in cases:
        if case["error"] is not None:
            console.print(Text.assemble(("✗ ", "bold red"), f"{case['id']}: {case['error']}"))
        for question in case["questions"]:
            if question["ok"]:
                continue
            prompt = _views.asked(question["prompt"], question.get("chat", "off"))
            console.print(Text.assemble(("✗ ", "bold red"), prompt))
            expected, says = quoted(question["expected"]), quoted(question["says"])
            if says == expected and question["predicted"]:  # parted only behind the given answer
                says = quoted(question["predicted"])
            as_before = " as before" if question["kind"] == "locality" else ""
            what = question["kind"]
            if question["name"] != what:
                what = f"{what}: {question['name']}"
            console.print(f"    expected {expected}{as_before}, says {says} ({what})")


def quoted(text: str) -> str:
    """Return text on one line, in quotation marks."""
    return "“" + " ".join(text.split()) + "”"


def headline(found: Mapping[str, int], top_k: int) -> str:
    """Return one line that says how many questions passed, and by which rank."""
    asked = _output.counted(found["questions"], "question")
    return f"{found['passed']} of {asked} passed · top {top_k}"
