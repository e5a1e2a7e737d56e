"""Choice, negation, the old answer: questions by hand, scores of known likelihoods, runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.case import BEYOND, Case, Edit, Probe
from errata.cli.app import app
from errata.data import LoadedData, load_cases, save_cases
from errata.errors import ConfigError, DataError
from errata.evaluation import evaluate
from errata.evaluation.before import ask_before
from errata.evaluation.beyond import BeyondSettings, beyond_suite, settings_of
from errata.evaluation.metrics import compare
from errata.evaluation.questioning import Questioner
from errata.evaluation.questions import Question, questions_of
from errata.evaluation.summary import summarise
from errata.evaluation.wild import score_of
from errata.model.lm import LM, RowScore
from errata.reporting.columns import column_of, ordered
from errata.store.runs import load_run
from tests.evaluation.stubs import Planted

TOWNS = (
    ("Anna", "Rome", "Paris"),
    ("Danielle", "Berlin", "Rome"),
    ("the mayor", "Paris", "Berlin"),
)


@pytest.fixture
def data() -> LoadedData:
    """Three edits in the same words, which therefore share a relation."""
    cases = []
    for number, (who, new, old) in enumerate(TOWNS):
        edit = Edit(f"{who} lives in", new, who, old, str(number))
        probes = (
            Probe(f"The home of {who} is", new, "generality", "rephrase"),
            Probe(f"The river of {who} is", "the river", "generality", "hop"),
            Probe("The city is", "Paris Rome", "locality", "locality"),
        )
        cases.append(Case(str(number), (edit,), probes))
    return LoadedData("jsonl", tuple(cases), "v", "here")


def made(case: Case) -> dict[str, list[Probe]]:
    return {kind: list(case.of(kind)) for kind in BEYOND}


class TestQuestions:
    def test_by_hand(self, lm: LM, data: LoadedData) -> None:
        case = beyond_suite(lm, data).cases[0]
        assert case.probes[:3] == data.cases[0].probes
        found = made(case)
        assert [p.name for p in found["choice"]] == ["edit", "rephrase"]
        for probe in found["choice"]:
            assert probe.target == "Rome"
            assert probe.choices == tuple(sorted(probe.choices, key=probe.prompt.index))
            assert set(probe.choices) == {"Paris", "Berlin"}  # the old one, and the third town
            shown, _, asked = probe.prompt.partition("? ")
            assert set(shown.replace(" or ", ", ").split(", ")) == {"Rome", "Paris", "Berlin"}
            assert asked in ("Anna lives in", "The home of Anna is")
        assert [(p.prompt, p.target, p.choices) for p in found["negation"]] == [
            ("It is not true that Anna lives in", "Rome", ("Paris", "Berlin")),
            ("The home of Anna is not", "Rome", ("Paris", "Berlin")),
        ]
        assert [(p.prompt, p.target, p.choices) for p in found["leakage"]] == [
            ("Anna lives in", "Paris", ("Rome",)),
            ("The home of Anna is", "Paris", ("Rome",)),
        ]

    def test_letters(self, lm: LM, data: LoadedData) -> None:
        suite = beyond_suite(lm, data, settings_of(["form=letters", 'tests=["choice"]']))
        probe = suite.cases[0].of("choice")[0]
        first, *lines, last = probe.prompt.split("\n")
        assert (first, last) == ("Anna lives in", "Answer:")
        assert dict(line.split(". ") for line in lines)[probe.target] == "Rome"
        assert sorted((probe.target, *probe.choices)) == ["A", "B", "C"]

    def test_draws_are_of_the_seed_and_not_of_the_order(self, lm: LM, data: LoadedData) -> None:
        many = replace(data, cases=tuple(
            Case(str(n), (Edit(f"Anna {n} lives in", f"town {n}", f"Anna {n}", "Paris"),))
            for n in range(12)
        ))  # fmt: skip
        one = beyond_suite(lm, many)
        assert one == beyond_suite(lm, many)
        back = beyond_suite(lm, replace(many, cases=many.cases[::-1]))
        assert back.cases[::-1] == one.cases
        assert all(len(p.choices) == 3 for c in one.cases for p in c.of("choice"))
        other = beyond_suite(lm, many, BeyondSettings(seed=1))
        assert other.cases != one.cases
        assert other.version != one.version
        lettered = beyond_suite(lm, many, BeyondSettings(form="letters")).cases
        assert (
            len({case.of("choice")[0].target for case in lettered}) > 1
        )  # the right one is not always in one place

    def test_what_the_model_says_stands_in_for_a_missing_old_answer(
        self, lm: LM, data: LoadedData
    ) -> None:
        bare = tuple(
            replace(c, edits=tuple(replace(e, target_true=None) for e in c.edits))
            for c in data.cases
        )
        suite = beyond_suite(lm, replace(data, cases=bare), BeyondSettings(tests=("leakage",)))
        for case in suite.cases:
            (edit,) = case.edits
            text = lm.generate([lm.prompt_of(edit)], 9, stops=(".", "\n"))[0]
            tokens = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
            said = text.strip()
            expected = {said} if said and said != edit.target and len(tokens) <= 8 else set()
            assert {p.target for p in case.of("leakage")} == expected

    def test_what_cannot_be_asked_is_counted(self, lm: LM, data: LoadedData) -> None:
        alone = replace(data, cases=(Case("1", (Edit("Tell me:", "Rome"),)),))
        suite = beyond_suite(lm, alone, BeyondSettings(old="data"))
        assert suite.cases[0].probes == ()
        assert suite.notes == (
            "suite beyond, of 1 edits: 1 edits without another object of their relation or an old"
            " answer",
        )
        told = beyond_suite(
            lm, replace(alone, cases=(Case("1", (Edit("Tell me:", "Rome", None, "Paris"),)),))
        )
        assert told.notes == ("suite beyond, of 1 edits: 1 prompts that no rule negates",)

    def test_the_data_sets_own_questions_may_be_left_out(self, lm: LM, data: LoadedData) -> None:
        case = beyond_suite(lm, data, BeyondSettings(keep=False)).cases[0]
        assert {probe.kind for probe in case.probes} == set(BEYOND)

    @pytest.mark.parametrize("name", ["counterfact", "mquake", "knowedit", "wikibigedit", "world"])
    def test_any_data_set(self, lm: LM, name: str) -> None:
        spec = name if name == "world" else f"{name}:sample"
        suite = beyond_suite(lm, load_cases(spec, limit=12, seed=0), BeyondSettings(old="data"))
        kinds = [{p.kind for p in case.probes} for case in suite.cases]
        assert any("choice" in own for own in kinds)
        assert all(probe.choices for c in suite.cases for k in BEYOND for probe in c.of(k))


def test_the_scores_by_hand() -> None:
    assert compare("choice", 1.0, [1.5, 2.0]) == 1
    assert compare("choice", 1.0, [1.5, 0.9]) == 0
    assert compare("choice", 1.0, [1.0]) == 0  # a tie is no choice
    assert compare("leakage", 1.0, [1.1]) == 1
    assert compare("negation", 1.0, [1.5, 0.9]) == 1
    assert compare("negation", 1.0, [1.5, 1.0]) == 0
    for kind in BEYOND:  # a destroyed model is right in nothing
        assert compare(kind, None, [None, None]) == 0
    assert compare("negation", None, [1.0]) == 0


class Known:
    """A model whose log-probability of every token of an answer is known, behind any prompt."""

    def __init__(self, lm: LM, values: Mapping[str, float]) -> None:
        self.lm, self.stack_size = lm, 8
        self.values = {lm.row("The home is", a).labels: v for a, v in values.items()}

    def score(self, rows: Any, patches: Any) -> list[RowScore]:
        return [
            RowScore((self.values[r.labels],) * len(r.labels), r.labels, (0,) * len(r.labels))
            for r in rows
        ]


def test_likelihoods_are_means_over_tokens(lm: LM) -> None:
    """The longer answer is less likely as a whole, and likelier per token: that decides."""
    case = Case(
        "1",
        (Edit("The mayor is", "Rome"),),
        (
            Probe("One is", "Paris Rome Berlin", "choice", "edit", choices=("Rome", "Berlin")),
            Probe("Two is", "Rome", "choice", "edit", choices=("Paris Rome Berlin",)),
            Probe("Not is", "Rome", "negation", "edit", choices=("Berlin", "Paris Rome Berlin")),
            Probe("Old is", "Rome", "leakage", "edit", choices=("Berlin",)),
        ),
    )
    questions = questions_of(lm, case, 5, False)
    before = ask_before(lm, {"1": questions})
    values = {"Rome": -0.9, "Berlin": -2.0, "Paris Rome Berlin": -0.5}
    questioner = Questioner(
        Known(lm, values),  # pyright: ignore[reportArgumentType]
        Planted(),
        before,
        known_k=5,
        clock=lambda part: nullcontext(),
    )
    entries = questioner.ask([("1", questions, None)])[0][1:]
    assert [entry["score"] for entry in entries] == [1.0, 0.0, 1.0, 1.0]
    assert entries[0]["nll"] == pytest.approx(0.5, abs=1e-12)
    assert entries[0]["choices_nll"] == pytest.approx([0.9, 2.0], abs=1e-12)
    assert [entry["likeliest"] for entry in entries] == [
        "Paris Rome Berlin", "Paris Rome Berlin", "Paris Rome Berlin", "Rome",
    ]  # fmt: skip


def test_what_the_unedited_model_does_is_that_of_its_own_logits(lm: LM, data: LoadedData) -> None:
    result = evaluate(lm, "none", beyond_suite(lm, data), bootstrap=0)
    for record in result.records:
        for entry in record["questions"]:
            if entry["kind"] not in BEYOND:
                continue
            assert entry["before"]["score"] == entry["score"]  # nothing was edited
            rows = [lm.row(entry["prompt"], a) for a in (entry["target"], *entry["choices"])]
            nlls = [-math.fsum(s.logprobs) / len(s.logprobs) for s in lm.score(rows)]
            assert [entry["nll"], *entry["choices_nll"]] == pytest.approx(nlls, abs=1e-9)
            assert entry["score"] == compare(entry["kind"], nlls[0], nlls[1:])
    beyond = result.summary["beyond"]
    assert {k: beyond[k] for k in BEYOND} == beyond["before"]
    assert 0.0 <= beyond["leakage"] <= 1.0


def test_summary_by_hand_and_the_average_is_what_it_was() -> None:
    def entry(kind: str, name: str, score: float, before: float = 0.0) -> dict[str, Any]:
        found: dict[str, Any] = {"kind": kind, "name": name, "score": score, "top1": score}
        return found | ({"before": {"score": before}} if kind in BEYOND else {})

    records = [
        {"id": "a", "edits": 1, "error": None, "questions": [
            entry("reliability", "edit", 1.0), entry("locality", "far", 0.5),
            entry("choice", "edit", 1.0), entry("choice", "rephrase", 0.0),
            entry("leakage", "edit", 1.0, 1.0),
        ]},
        {"id": "b", "edits": 1, "error": None, "questions": [
            entry("reliability", "edit", 0.0), entry("locality", "far", 1.0),
            entry("choice", "edit", 0.0), entry("leakage", "edit", 0.0, 1.0),
        ]},
    ]  # fmt: skip
    found = summarise(records, {}, bootstrap=0)
    assert found["beyond"] == {
        "choice": 0.25,  # edit 1/2, rephrase 0
        "leakage": 0.5,
        "ci95": {},
        "before": {"choice": 0.0, "leakage": 1.0},
    }
    assert found["average"] == pytest.approx((0.5 + 0.75) / 2, abs=1e-12)
    assert found["by"]["name"]["choice"]["edit"] == {"mean": 0.5, "items": 2}
    plain = [{**r, "questions": r["questions"][:2]} for r in records]
    assert "beyond" not in summarise(plain, {}, bootstrap=0)


def test_free_answers(lm: LM) -> None:
    def score(kind: Any, said: str) -> float:
        probe = Probe("It is", "Rome", kind, "edit", choices=("Paris",))
        (question,) = questions_of(lm, Case("1", (Edit("It was", "Rome"),), (probe,)), 5, False)[1:]
        assert isinstance(question, Question)
        return score_of(lm, question, said, None)

    assert [score(kind, "the rome.") for kind in BEYOND] == [1.0, 0.0, 1.0]
    assert [score(kind, "Paris") for kind in BEYOND] == [0.0, 1.0, 0.0]
    assert [score(kind, "") for kind in BEYOND] == [0.0, 0.0, 0.0]  # silence denies nothing


class TestFiles:
    def test_own_cases_may_have_them(self, tmp_path: Path, lm: LM, data: LoadedData) -> None:
        cases = beyond_suite(lm, data).cases
        save_cases(tmp_path / "cases.jsonl", cases)
        assert load_cases(tmp_path / "cases.jsonl").cases == cases

    @pytest.mark.parametrize(
        ("probe", "field"),
        [({"kind": "choice"}, "choices"), ({"kind": "generality", "choices": ["Rome"]}, "choices")],
    )
    def test_choices_belong_to_what_compares(
        self, tmp_path: Path, probe: dict[str, Any], field: str
    ) -> None:
        line = {"id": "1", "edits": [{"prompt": "a", "target": "b"}],
                "probes": [{"prompt": "a", "target": "b", **probe}]}  # fmt: skip
        file = tmp_path / "cases.jsonl"
        file.write_text(json.dumps(line))
        with pytest.raises(DataError, match=f"line 1: field 'probes.0..{field}'"):
            load_cases(file)
        with pytest.raises(DataError, match="choices"):
            Probe("a", "b", name="n", **{"choices": (), **probe})

    def test_no_foil_beside_choices(self) -> None:
        with pytest.raises(DataError, match="has a foil"):
            Probe("a", "b", "choice", "n", choices=("c",), foil="d")


def rounded(value: Any) -> Any:
    """What a record says, to 10 digits: rows in other company differ in the last ones."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 10) if isinstance(value, float) else value


@pytest.mark.parametrize("answers", ["forced", "wild"])
def test_runs_resume_and_stack_to_the_same_records(
    tmp_path: Path, lm: LM, data: LoadedData, answers: str
) -> None:
    def run(out: str, editor: Planted, **more: Any) -> list[dict[str, Any]]:
        found = evaluate(
            lm, editor, data, suite="beyond", answers=answers, new_tokens=4, out=tmp_path / out,
            bootstrap=0, **more,
        )  # fmt: skip
        return [{k: v for k, v in record.items() if k != "seconds"} for record in found.records]

    whole = run("whole", Planted())
    assert {e["kind"] for r in whole for e in r["questions"]} >= set(BEYOND)
    alone = run("alone", Planted(), stack_size=1)
    assert rounded(alone) == rounded(whole)
    stopped = Planted()
    stopped.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        run("again", stopped, stack_size=1)
    assert len(load_run(tmp_path / "again").records) < len(whole)
    assert run("again", Planted(), stack_size=1, resume=True) == alone


def test_settings_are_checked() -> None:
    for pair in ("options=1", "tests=[]", "form=numbers", "word=3"):
        with pytest.raises(ConfigError, match="suite beyond"):
            settings_of([pair])


def test_columns() -> None:
    names = ["wild.choice", "leakage", "choice", "average", "negation", "perplexity"]
    assert ordered(names) == [
        "average",
        "choice",
        "negation",
        "leakage",
        "wild.choice",
        "perplexity",
    ]
    assert column_of("leakage").marked is False
    assert column_of("choice").marked is True
    assert column_of("choice").title == "MC"


def test_the_command_line(tmp_path: Path, data: LoadedData) -> None:
    file = tmp_path / "cases.jsonl"
    save_cases(file, data.cases)
    shown = CliRunner().invoke(
        app,
        ["eval", "--model", "pocket", "--editor", "none", "--data", str(file), "--suite", "beyond",
         "--suite-set", "options=3", "--no-save", "--fail-under", "choice=0"],
        env={"COLUMNS": "100"},
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    for words in ("suite beyond", "choice", "negation", "leakage (less is better)", "before the"):
        assert words in shown.output
