"""The robustness suite: its questions, whole answers, micro-averages, and runs of it."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.case import Case, Edit, Probe
from errata.cli.app import app
from errata.data import LoadedData, load_cases
from errata.errors import ConfigError, DataError, RunError
from errata.evaluation import evaluate
from errata.evaluation.before import Before
from errata.evaluation.named_tests import named_tests
from errata.evaluation.questioning import Questioner
from errata.evaluation.questions import questions_of
from errata.evaluation.robustness import RobustnessSettings, robustness_suite, settings_of
from errata.evaluation.summary import summarise
from errata.locate.perturb import long_contexts, seen_subjects, strip_braces, subject_shuffles
from errata.model.lm import LM, RowScore
from errata.store.runs import load_run
from tests.evaluation.stubs import Planted

FORMS = ("Old Rome", "Rome by the river", "the town of Rome")
EXACT = 1e-12


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.json"
    path.write_text(json.dumps([f"Anna {i} lives in {{Berlin}} {i}." for i in range(60)]))
    return str(path)


@pytest.fixture
def data() -> LoadedData:
    """Two cases as REP's file has them; the second subject is one token."""
    cases = []
    for number, subject in enumerate(("Rome Berlin Paris", "Rome")):
        edit = Edit(f"The mayor of {subject} is", "Anna of Paris", subject, "Danielle", str(number))
        probes = (
            Probe(f"Who rules {subject}? It is", "Anna of Paris", "generality", "rephrase"),
            Probe("The king is", "Danielle", "generality", "rephrase"),  # of another answer
            Probe("The city is", "Paris Rome", "locality", "locality", top_k=3),
        )
        meta = {"subject_rephrase": FORMS, "domain": "towns", "locality_keys": ((),)}
        cases.append(Case(str(number), (edit,), probes, meta))
    return LoadedData("rep", tuple(cases), "v", "here")


def prompts_of(case: Case) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for probe in case.probes:
        found.setdefault(probe.name, []).append(probe.prompt)
    return found


class TestQuestions:
    def test_every_test_has_its_prompts(self, lm: LM, data: LoadedData, text: str) -> None:
        suite = robustness_suite(lm, data, settings_of([f"text={text}", "words=6", "held=2"]))
        case = suite.cases[0]
        found = prompts_of(case)
        prompt = "The mayor of Rome Berlin Paris is"
        shuffles = subject_shuffles(lm, "Rome Berlin Paris")
        texts = [f"Anna {i} lives in {{Berlin}} {i}." for i in range(60)]
        assert len(found["prefix"]) == 5
        assert all(p.endswith(f". {prompt}") for p in found["prefix"])
        assert found["prompt"] == ["Who rules Rome Berlin Paris? It is"]
        assert found["subject_id"] == [f"The mayor of {form} is" for form in FORMS[:2]]
        assert found["subject_od"] == [f"The mayor of {form} is" for form in FORMS[2:]]
        assert found["shuffle_id"] == [f"The mayor of {form} is" for form in shuffles[:3]]
        assert found["shuffle_od"] == [f"The mayor of {form} is" for form in shuffles[3:]]
        assert found["possessive"] == ["The mayor of Rome Berlin Paris's is"]
        assert found["locality"] == ["The city is"]
        assert len(found["long"]) == 1
        assert len(found["long_held"]) == 2
        for long in (*found["long"], *found["long_held"]):
            context = long.removesuffix(f" {prompt}")
            assert len(context.split()) == 6
            assert "{" not in context
            first = int(context.split()[1])
            assert context == strip_braces(" ".join(texts[first].split()))
        assert case.exact
        assert {p.target for p in case.of("generality")} == {"Anna of Paris"}
        assert {p.top_k for p in case.probes} == {1}
        assert "locality_keys" not in case.meta
        assert case.meta["domain"] == "towns"

    def test_the_edit_holds_what_training_may_see(
        self, lm: LM, data: LoadedData, text: str
    ) -> None:
        suite = robustness_suite(lm, data, settings_of([f"text={text}", "words=6"]))
        for case in suite.cases:
            (edit,) = case.edits
            found = prompts_of(case)
            seen = {edit.prompt.replace(edit.subject or "", s) for s in seen_subjects(lm, edit)}
            assert seen == {*found["subject_id"], *found.get("shuffle_id", ())}
            assert not seen & {*found["subject_od"], *found.get("shuffle_od", ())}

    def test_one_token_has_no_shuffle(self, lm: LM, data: LoadedData, text: str) -> None:
        suite = robustness_suite(lm, data, settings_of([f"text={text}", "words=6"]))
        assert not any(name.startswith("shuffle") for name in prompts_of(suite.cases[1]))

    def test_long_contexts_are_those_of_training(self, lm: LM, data: LoadedData, text: str) -> None:
        from errata.data.corpus import load_corpus

        settings = settings_of([f"text={text}", "words=9", "seed=4", 'tests=["long"]'])
        case = robustness_suite(lm, data, settings).cases[0]
        prompt = case.edits[0].prompt
        texts = load_corpus(lm.name, text, 2000).texts
        drawn = long_contexts(texts, prompt, words=9, seed=4)
        assert prompts_of(case) == {
            "long": [f"{drawn.unseen} {prompt}"],
            "long_held": [f"{held} {prompt}" for held in drawn.held],
        }

    def test_seeds_and_settings_make_the_version(self, lm: LM, data: LoadedData, text: str) -> None:
        def suite(**more: Any) -> LoadedData:
            return robustness_suite(lm, data, RobustnessSettings(text=text, words=6, **more))

        one = suite()
        assert one == suite()
        assert one.name == "rep"
        assert one.version != data.version
        for other in (suite(seed=1), suite(held=1), suite(prefixes=2), suite(tests=("prompt",))):
            assert other.version != one.version
            assert other.cases != one.cases
        # other cases beside it do not change what a case is asked
        alone = robustness_suite(
            lm, replace(data, cases=data.cases[1:]), RobustnessSettings(text=text, words=6)
        )
        assert alone.cases == one.cases[1:]

    def test_a_subject_that_is_possessive_already_is_left_alone(
        self, lm: LM, data: LoadedData
    ) -> None:
        edit = Edit("Rome's mayor is", "Anna", "Rome")
        one = replace(data, cases=(Case("1", (edit,)),))
        settings = RobustnessSettings(tests=("possessive",))
        assert robustness_suite(lm, one, settings).cases[0].probes == ()

    def test_true_answers(self, lm: LM, data: LoadedData, text: str) -> None:
        settings = settings_of([f"text={text}", "words=6", "truth=true"])
        case = robustness_suite(lm, data, settings).cases[0]
        assert (case.edits[0].target, case.edits[0].target_true) == ("Danielle", None)
        assert {p.target for p in case.of("generality")} == {"Danielle"}
        untold = replace(data, cases=(Case("1", (Edit("a", "b", "a"),)),))
        with pytest.raises(DataError, match=r"case '1' does not tell the true answer"):
            robustness_suite(lm, untold, settings)

    def test_a_context_that_does_not_fit_is_shortened_and_said_so(
        self, lm: LM, data: LoadedData, text: str
    ) -> None:
        settings = settings_of([f"text={text}", "words=200", 'tests=["long"]'])
        suite = robustness_suite(lm, data, settings)
        (note,) = suite.notes
        assert note.startswith("12 of 12 long contexts shortened from 200 words to ")
        assert note.endswith("the model has 256 positions")
        result = evaluate(lm, "none", suite, bootstrap=0)
        assert result.summary["failed"] == 0

    def test_mistakes(self, lm: LM, data: LoadedData, text: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="suite robustness: unknown setting 'word'"):
            settings_of(["word=3"])
        with pytest.raises(ConfigError, match="suite robustness: setting 'words"):
            settings_of(["words=many"])
        with pytest.raises(ConfigError, match="suite robustness: setting 'tests"):
            settings_of(['tests=["longer"]'])
        with pytest.raises(DataError, match=r"no such file.*\n.*--suite-set text=FILE"):
            robustness_suite(lm, data, settings_of([f"text={tmp_path}/none.txt"]))
        with pytest.raises(DataError, match="expected at least 9000"):
            robustness_suite(lm, data, settings_of([f"text={text}", "words=9000"]))


def test_the_real_file(lm: LM, shared: Path, text: str) -> None:
    path = shared / "data" / "rep" / "counterfact_para_subject-valid.json"
    if not path.is_file():
        pytest.skip("needs REP's file")
    settings = settings_of([f"text={text}", "words=6"])
    loaded = load_cases(f"rep:{path}")
    suite = robustness_suite(lm, loaded, settings)
    counts = Counter(probe.name for case in suite.cases for probe in case.probes)
    assert counts["subject_id"] == counts["subject_od"] == 500
    shuffles = [len(subject_shuffles(lm, case.edits[0].subject or "")) for case in loaded.cases]
    assert counts["shuffle_id"] + counts["shuffle_od"] == sum(shuffles)
    assert shuffles.count(10) > 90  # the others have two or three tokens
    assert counts["prompt"] == 1315
    assert counts["locality"] == 1000
    assert counts["long"] == 100
    assert counts["long_held"] == 500
    assert counts["possessive"] == 99  # one prompt has "Ipsos MORI's" already
    (as_counterfact, *_) = robustness_suite(
        lm, load_cases(f"counterfact:{path}", limit=1), settings
    ).cases
    assert as_counterfact.edits == suite.cases[0].edits
    assert as_counterfact.probes == suite.cases[0].probes


def test_the_world(lm: LM, text: str) -> None:
    options = {"scale": "test"}
    loaded = load_cases("world", options=options, limit=12, seed=3)
    settings = settings_of([f"text={text}", "words=6"])
    suite = robustness_suite(lm, loaded, settings, options=options)
    for case, old in zip(suite.cases, loaded.cases, strict=True):
        found = prompts_of(case)
        assert case.edits[0].prompt == old.edits[0].prompt
        assert len(found["prompt"]) == 4
        assert 1 <= len(found["neighborhood"]) <= 5
        assert len(found["subject_id"]) >= len(found["subject_od"]) >= 1
        assert not set(found["subject_id"]) & set(found["subject_od"])
    result = evaluate(lm, "none", suite, bootstrap=0)
    assert result.summary["by"]["test"]["neighborhood"]["mean"] == 1.0
    with pytest.raises(DataError, match="not one of the world of scale pocket"):
        robustness_suite(lm, loaded, settings)


# ---------------------------------------------------------------------- scores


class PlantedModel:
    """A model whose greedy answer to every prompt is known, in place of the scorer."""

    def __init__(self, lm: LM, says: dict[str, str]) -> None:
        self.lm = lm
        self.stack_size = 8
        self.says = {
            row.ids[: row.prompt_length]: row.labels
            for row in (lm.row(prompt, answer) for prompt, answer in says.items())
        }

    def score(self, rows: list[Any], patches: list[Any]) -> list[RowScore]:
        found = []
        for row in rows:
            said = self.says[row.ids[: row.prompt_length]]
            said = (*said, *[0] * len(row.labels))[: len(row.labels)]
            ranks = tuple(0 if a == b else 1 for a, b in zip(said, row.labels, strict=True))
            found.append(RowScore((-0.5,) * len(said), said, ranks))
        return found


def test_only_whole_answers_count_but_locality_is_a_share(lm: LM) -> None:
    edit = Edit("The mayor is", "Paris Rome Berlin")
    case = Case(
        "1",
        (edit,),
        (
            Probe("One is", "Paris Rome Berlin", "generality", "prompt", top_k=1),
            Probe("Two is", "Paris Rome Berlin", "generality", "prompt", top_k=1),
            Probe("Top two is", "Paris Rome Berlin", "generality", "prompt", top_k=2),
            Probe("Far is", "Rome Paris Berlin Paris", "locality", "far", top_k=1),
        ),
        exact=True,
    )
    questions = questions_of(lm, case, 5, False)
    assert [len(q.row.labels) for q in questions] == [3, 3, 3, 3, 4]
    said = {
        "The mayor is": "Paris Rome Anna",
        "One is": "Paris Rome Berlin",
        "Two is": "Rome Rome Berlin",
        "Top two is": "Rome Rome Berlin",
        "Far is": "Paris Paris Berlin Paris",
    }
    before = {("1", 4): Before(questions[4].row.labels, None, None)}

    def ask(asked: list[Any]) -> list[dict[str, Any]]:
        questioner = Questioner(
            PlantedModel(lm, said),  # pyright: ignore[reportArgumentType]
            Planted(),
            before,
            known_k=5,
            clock=lambda part: nullcontext(),
        )
        assert questioner.first_answers([(asked, None)]) == [
            [1.0 if asked[0].k > 1 else 0.0 if asked[0].exact else 2 / 3]
        ]
        return questioner.ask([("1", asked, None)])[0]

    whole = ask(questions)
    assert [entry["score"] for entry in whole] == [0.0, 1.0, 0.0, 1.0, 0.75]
    assert [entry["top1"] for entry in whole] == [0.0, 1.0, 0.0, 0.0, 0.75]
    assert [entry.get("exact", False) for entry in whole] == [True] * 4 + [False]
    shares = ask(questions_of(lm, replace(case, exact=False), 5, False))
    assert [entry["score"] for entry in shares] == [2 / 3, 1.0, 2 / 3, 1.0, 0.75]
    assert not any("exact" in entry for entry in shares)


def entry(kind: str, name: str, score: float) -> dict[str, Any]:
    found = {"kind": kind, "name": name, "score": score, "top1": score, "hits": [int(score)]}
    return found if kind == "locality" else {**found, "exact": True}


def record(name: str, *entries: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "edits": 1, "error": None, "questions": list(entries)}


def test_micro_averages_by_hand() -> None:
    records = [
        record(
            "a",
            entry("reliability", "edit", 1.0),
            *(entry("generality", "subject_id", score) for score in (1.0, 0.0, 0.0)),
            entry("locality", "far", 0.5),
        ),
        record(
            "b",
            entry("reliability", "edit", 0.0),
            entry("generality", "subject_id", 1.0),
            entry("generality", "shuffle_od", 1.0),
            entry("locality", "far", 1.0),
        ),
    ]
    found = named_tests(records, 0, 0, ("success", "shuffle_od", "subject_id"))
    assert found == {
        "success": {"mean": 0.5, "items": 2},
        "shuffle_od": {"mean": 1.0, "items": 1},
        "subject_id": {"mean": 0.5, "items": 4},  # 2 of 4, not the mean of 1/3 and 1
        "far": {"mean": 0.75, "items": 2},
    }
    assert list(found) == ["success", "shuffle_od", "subject_id", "far"]
    assert named_tests([], 100, 0, ()) == {}


def test_intervals_resample_cases_not_questions() -> None:
    """With two cases of rates 1 and 0 every resample gives 0, 1/2 or 1, whatever is asked."""
    records = [
        record("a", *(entry("generality", "prompt", 1.0) for _ in range(50))),
        record("b", *(entry("generality", "prompt", 0.0) for _ in range(50))),
    ]
    assert named_tests(records, 400, 0, ())["prompt"]["ci95"] == [0.0, 1.0]
    summary = summarise(records, {}, bootstrap=400)
    assert summary["by"]["test"]["prompt"]["ci95"] == [0.0, 1.0]
    assert summary["by"]["test"]["prompt"]["mean"] == pytest.approx(0.5, abs=EXACT)


def test_records_of_no_suite_have_no_tests(lm: LM, cases: list[Case]) -> None:
    assert "test" not in evaluate(lm, "none", cases, bootstrap=0).summary["by"]


# ---------------------------------------------------------------------- runs


def test_a_stopped_suite_resumes_to_the_same_summary(
    lm: LM, data: LoadedData, text: str, tmp_path: Path
) -> None:
    settings = RobustnessSettings(text=text, words=6)
    many = replace(
        data,
        cases=tuple(replace(c, id=f"{c.id}-{i}") for i in range(3) for c in data.cases),
    )
    suite = robustness_suite(lm, many, settings)
    extra = {"suite": settings.model_dump(mode="json")}

    def run(editor: Planted, out: str, **more: Any) -> Any:
        return evaluate(
            lm,
            editor,
            suite,
            out=tmp_path / out,
            bootstrap=40,
            stack_size=2,
            config_extra=more.pop("extra", extra),
            **more,
        )

    whole = run(Planted(), "whole")
    killed = Planted()
    killed.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        run(killed, "killed")
    assert 0 < len(load_run(tmp_path / "killed").records) < 6
    again = run(Planted(), "killed", resume=True)
    assert again.summary["by"] == whole.summary["by"]
    assert again.summary["by"]["test"]["success"]["items"] == 6
    assert load_run(tmp_path / "killed").config["suite"]["words"] == 6
    other = {"suite": {**extra["suite"], "words": 7}}
    with pytest.raises(RunError, match="words"):
        run(Planted(), "killed", resume=True, extra=other)


class TestCommand:
    @pytest.fixture
    def call(self, lm: LM, data: LoadedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        from errata.data import save_cases

        cases = tuple(replace(case, meta={"subject_rephrase": FORMS}) for case in data.cases)
        save_cases(tmp_path / "cases.jsonl", cases)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("errata.model.loading.load", lambda name, **options: lm)

        def run(*more: str) -> Any:
            words = ["eval", "-m", "tiny", "-e", "none", "--data", "cases.jsonl", *more]
            return CliRunner().invoke(app, words, prog_name="errata")

        return run

    def test_json_holds_every_test_and_the_run_its_settings(
        self, call: Any, text: str, tmp_path: Path
    ) -> None:
        own = ("--suite", "robustness", "--suite-set", f"text={text}", "--suite-set", "words=6")
        done = call(*own, "--json", "--out", "run")
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        tests = found["by"]["test"]
        assert list(tests) == [
            "success", "prefix", "long", "long_held", "prompt", "subject_id", "subject_od",
            "shuffle_id", "shuffle_od", "possessive", "locality",
        ]  # fmt: skip
        assert {name: tests[name]["items"] for name in ("long_held", "subject_id", "success")} == {
            "long_held": 10,
            "subject_id": 4,
            "success": 2,
        }
        # the second subject is one token: of a single case there is no interval
        single = {name for name, entry in tests.items() if len(entry.get("ci95", ())) != 2}
        assert single == {"shuffle_id", "shuffle_od"}
        assert found["data"] == "jsonl"
        config = load_run(tmp_path / "run").config
        assert config["protocol"]["suite"] == "robustness"
        expected = settings_of([f"text={text}", "words=6"]).model_dump(mode="json")
        assert config["protocol"]["suite_set"] == expected
        table = call(*own, "--no-save").stdout
        assert "jsonl, suite robustness" in table
        assert "subject_od" in table
        assert "generality by name" not in table

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--suite", "robust"), "unknown suite 'robust'"),
            (("--suite-set", "words=3"), "suite_set needs a suite"),
            (("--suite", "robustness", "--suite-set", "word=3"), "unknown setting 'word'"),
            (("--suite", "robustness", "--suite-set", "words"), "not of the form"),
        ],
    )
    def test_mistakes_are_explained(self, call: Any, words: tuple[str, ...], said: str) -> None:
        done = call(*words, "--no-save")
        assert done.exit_code == 2
        assert said in done.stderr
