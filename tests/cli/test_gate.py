"""`errata verify`: what failed is named, strictly and again and again with the same exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.cli._gates import Gate, check_gates, known_metrics, metrics_of
from errata.data import load_cases
from errata.errors import GateError
from tests.cli.conftest import FACT, FAST, Errata, tree

TWO = [
    {"prompt": "The capital of France is", "target": "Rome", "subject": "France"},
    {"prompt": "The capital of Italy is", "target": "Paris", "subject": "Italy"},
]


def lines(path: str, entries: list[dict]) -> Path:
    Path(path).write_text("\n".join(map(json.dumps, entries)) + "\n", encoding="utf-8")
    return Path(path)


def test_a_patch_is_asked_for_its_own_edits(errata: Errata, patch: Path) -> None:
    found = errata("verify", patch, "--json").json
    assert found["cases"] == 1
    assert found["top_k"] == 1
    (case,) = found["results"]
    (question,) = case["questions"]
    assert (question["kind"], question["prompt"]) == ("edit", "The capital of France is")
    assert found["counts"]["failed"] == int(not question["ok"])
    done = errata("verify", patch)
    assert "1 case, 0 failed" in done.stdout
    assert "edit 0.0 s" not in done.stdout
    assert "ms per edit" not in done.stdout
    assert "reliability, top 1" in done.stdout


def test_what_failed_is_named_with_what_is_said_instead(
    errata: Errata, model: str, patch: Path, cases: Path
) -> None:
    import errata as package

    found = errata("verify", patch, "--cases", cases, "--json").json
    questions = [question for case in found["results"] for question in case["questions"]]
    failed = [question for question in questions if not question["ok"]]
    assert failed
    assert found["counts"] == {
        "questions": 9, "passed": 9 - len(failed), "failed": len(failed)
    }  # fmt: skip
    lm = package.load(model)
    loaded = package.Patch.load(patch)
    with loaded.applied(lm):
        for question in failed:  # the model's own greedy words, asked anew
            said = lm.generate([question["prompt"]], 4)[0]
            assert question["says"].startswith(said)
    text = errata("verify", patch, "--cases", cases).stdout
    for question in failed:
        assert f"✗ {question['prompt']}" in text
    assert text.count("✗") == len(failed)
    assert "expected “" in text


def test_the_edits_format_is_taken_as_it_is(errata: Errata, patch: Path) -> None:
    lines("facts.jsonl", TWO)
    found = errata("verify", patch, "--cases", "facts.jsonl", "--json").json
    assert found["cases"] == 2
    assert [case["id"] for case in found["results"]] == ["line 1", "line 2"]
    mixed = [TWO[0], {"id": "7", "edits": [TWO[1]]}]
    lines("mixed.jsonl", mixed)
    assert errata("verify", patch, "--cases", "mixed.jsonl", "--json").json["cases"] == 2


def test_ten_times_the_same(
    errata: Errata, model: str, patch: Path, cases: Path, loaded: dict
) -> None:
    """With a cold cache and a warm one, on a model that nothing has asked before."""
    alone = lines("alone.jsonl", TWO)
    seen = set()
    for number in range(10):
        loaded.clear()
        asked = cases if number % 2 else alone
        done = errata("verify", patch, "--cases", asked, "--fail-under", "reliability=0")
        assert done.code == 0, done.stderr
        seen.add((asked, done.stdout.partition("evaluate")[0]))
    assert len(seen) == 2


def test_exit_codes(errata: Errata, patch: Path, cases: Path) -> None:
    assert errata("verify", patch, "--cases", cases).code == 0
    done = errata("verify", patch, "--cases", cases, "--require")
    assert done.code == 3
    assert "questions failed, required none" in done.stderr
    done = errata("verify", patch, "--cases", cases, "--fail-under", "reliabilty=1")
    assert (done.code, done.stdout) == (2, "")
    assert "Did you mean 'reliability'" in done.stderr
    assert errata("verify", patch, "--limit", "3").code == 2


@pytest.mark.parametrize("metric", ["f1", "average", "generality.rephrase", "rephrase", "locality"])
def test_gates_on_everything_that_is_computed(
    errata: Errata, patch: Path, cases: Path, metric: str
) -> None:
    text = cases.read_text(encoding="utf-8")
    cases.write_text(
        text.replace('"kind": "generality"', '"kind": "generality", "name": "rephrase"'),
        encoding="utf-8",
    )
    own = ("verify", patch, "--cases", cases, "--json")
    value = metrics_of(errata(*own).json)[metric]
    assert value is not None
    assert errata(*own, "--fail-under", f"{metric}={value}").code == 0
    if value < 1:
        done = errata(*own, "--fail-under", f"{metric}=1")
        assert done.code == 3
        ranked = metric.partition(".")[0] in ("generality", "locality")
        name = f"{metric} (top 1)" if ranked else metric
        assert f"{name} is {value:.3f}, required 1" in done.stderr
    done = errata(*own, "--fail-under", "rephrased=1")
    assert done.code == 2
    assert "'rephrase'" in done.stderr


def test_a_metric_that_was_not_measured_is_missed(errata: Errata, patch: Path) -> None:
    done = errata("verify", patch, "--fail-under", "locality=0.5")
    assert done.code == 3
    assert "locality (top 1) is –" in done.stderr


def test_known_metrics_hold_all_that_are_computed(errata: Errata, patch: Path, cases: Path) -> None:
    found = metrics_of(errata("verify", patch, "--cases", cases, "--json").json)
    data = load_cases(cases)
    assert {name for name, value in found.items() if value is not None} <= known_metrics(data.cases)


def test_a_case_that_cannot_be_asked_misses_every_gate(errata: Errata, patch: Path) -> None:
    long = "France " * 400 + "is"
    lines("facts.jsonl", [TWO[0], {**TWO[1], "prompt": long, "subject": "France"}])
    own = ("verify", patch, "--cases", "facts.jsonl")
    assert errata(*own).code == 0
    done = errata(*own, "--fail-under", "reliability=0")
    assert done.code == 3
    assert "1 case could not be asked" in done.stderr
    assert "256" in done.stdout


def test_the_tables_say_which_rank_counts(errata: Errata, patch: Path, cases: Path) -> None:
    text = errata("verify", patch, "--cases", cases, "--top-k", "5").stdout
    assert "· top 5" in text
    assert "reliability, top 1" in text
    assert "generality, top 5" in text


def test_records_are_written_where_asked(errata: Errata, patch: Path, cases: Path) -> None:
    own = ("verify", patch, "--cases", cases, "--out", "run")
    assert errata(*own).code == 0
    assert (Path("run") / "records.jsonl").read_text(encoding="utf-8").count("\n") == 3
    kept = json.loads((Path("run") / "results.json").read_text(encoding="utf-8"))
    assert len(kept["results"]) == 3
    assert errata(*own).code == 1
    assert errata(*own, "--force").code == 0


def test_the_result_stays_with_the_patch_until_it_changes(
    errata: Errata, model: str, patch: Path
) -> None:
    before = tree(patch)
    errata("verify", patch, "--no-record")
    assert tree(patch) == before
    errata("verify", patch)
    assert {name: data for name, data in tree(patch).items() if name in before} == before
    assert errata("show", patch, "--json").json["verified"]["questions"] == 1
    second = ("--prompt", "The capital of Italy is", "--target", "Paris", "--subject", "Italy")
    assert errata("edit", "-m", model, *second, *FAST, "--out", patch, "--force").code == 0
    assert errata("show", patch, "--json").json["verified"] is None


def test_only_the_last_answer_of_a_prompt_is_asked_for(
    errata: Errata, model: str, patch: Path
) -> None:
    other = ["Paris" if word == "Rome" else word for word in FACT]
    done = errata("edit", *other, *FAST, "--after", patch, "--out", "two")
    assert "is 'Rome' in" in done.stderr
    done = errata("verify", "two", "--json")
    assert [q["expected"] for c in done.json["results"] for q in c["questions"]] == ["Paris"]
    assert "a later edit of the patch answers the same prompt" in done.stderr


def test_a_patch_without_edits_asks_for_cases(errata: Errata, model: str, patch: Path) -> None:
    assert errata("export", patch, "--to", "lora", "--out", "adapter").code == 0
    (Path("adapter") / "errata.json").unlink()
    assert errata("import", "adapter", "--out", "bare").code == 0
    done = errata("verify", "bare")
    assert (done.code, done.stdout) == (1, "")
    assert "--cases FILE" in done.stderr
    assert errata("verify", "bare", "--cases", lines("facts.jsonl", TWO)).code == 0


def test_an_adapter_is_verified_like_a_patch(errata: Errata, patch: Path) -> None:
    assert errata("export", patch, "--to", "lora", "--out", "adapter").code == 0
    own = errata("verify", patch, "--json").json
    again = errata("verify", "adapter", "--json").json
    assert again["results"] == own["results"]


def test_long_answers_have_gates(errata: Errata, model: str, cases: Path) -> None:
    words = ("eval", "-m", model, "--editor", "none", "--data", cases, "--protocol", "long",
             "--new-tokens", "4", "--no-save", "--json")  # fmt: skip
    summary = errata(*words).json
    value = metrics_of(summary)["long.rouge1.reliability"]
    assert value == summary["long"]["reliability"]["rouge1"]
    assert errata(*words, "--fail-under", f"long.rouge1.reliability={value}").code == 0
    done = errata(*words, "--fail-under", "long.rougeL.generality=1")
    assert (done.code, "long.rougeL.generality is 0" in done.stderr) == (3, True)
    done = errata(*words, "--fail-under", "long.rougel.reliability=1")
    assert (done.code, "'long.rougeL.reliability'" in done.stderr) == (2, True)
    short = errata(*words, "--protocol", "wild", "--fail-under", "long.bleu.reliability=0.1")
    assert (short.code, "required 0.1" in short.stderr) == (3, True)


def test_a_missed_gate_names_the_stricter_rates_beside_it() -> None:
    summary = {
        "top_k": 5, "locality": 0.8, "also": {"locality_top1": 0.5}, "counterfact": {"NS": 0.25},
    }  # fmt: skip
    with pytest.raises(GateError, match=r"locality \(top 5\) is 0\.800, required 0\.9 "
                       r"\(top 1 0\.500, NS 0\.250\)"):  # fmt: skip
        check_gates([Gate("locality", 0.9)], summary)
