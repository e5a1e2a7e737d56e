"""`errata verify --endpoint` against a server in this process, edited and not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Errata
from tests.stub_server import Stub, served

PROMPT = "The capital of France is"


@pytest.fixture
def noted(patch: Path) -> Path:
    """The patch, as if it had been made on a model that knows capitals: Italy is asked beside."""
    path = patch / "patch.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["results"] = [{"taken": True, "taken_before": False, "p_before": 0.01, "p_after": 0.9}]
    around = {"subject": "Italy", "before": "Rome", "after": "Rome", "moved": False}
    document["aftermath"] = {
        "neighbours": [{"prompt": "The capital of Italy is", **around}],
        "bare": [{"prompt": "France", "subject": "France", "before": "is", "after": "is"}],
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return patch


BASE = {PROMPT: " Paris, of course", "The capital of Italy is": " Rome.", "France": " is"}
EDITED = {**BASE, PROMPT: (" Rome, of", [(" Rome", math.log(0.75)), (",", -1.0)])}


def answering(**models: dict[str, Any]) -> Stub:
    return Stub(lambda model, question: models[model][question], list(models))


def says(stub: Stub, run: Callable[..., Any], *words: str) -> Any:
    with served(stub) as url:
        return run(*words, "--endpoint", url, "--retries", "0")


def test_an_edited_server_passes(errata: Errata, noted: Path) -> None:
    done = says(answering(edited=EDITED), errata, "verify", str(noted))
    assert done.code == 0, done.stderr
    assert f"✓ {PROMPT} → Rome  0.0100 → 0.7500" in done.stdout
    assert "0 of 1 neighbour moved" in done.stdout
    assert not (noted / "verified.json").exists()


def test_an_unedited_server_is_found(errata: Errata, noted: Path) -> None:
    done = says(answering(base=BASE), errata, "verify", str(noted))
    assert done.code == 3
    assert "says “Paris, of course”" in done.stdout
    assert (
        "base answers as the unedited model: none of the edits is there, and 2 of 2" in done.stderr
    )
    assert "Is the adapter applied?" in done.stderr


def test_the_base_beside_it_is_compared(errata: Errata, noted: Path) -> None:
    words = ("verify", str(noted), "--endpoint-base", "base", "--json")
    found = says(answering(edited=EDITED, base=BASE), errata, *words).json
    assert found["served_model"] == "edited"  # the other one of two
    assert found["base"]["model"] == "base"
    assert found["unedited"] is None
    assert found["reliability"] == 1.0
    (first, *_) = found["results"]
    assert first["base_says"] == " Paris, of course"
    assert first["p"] == pytest.approx(0.75)
    done = says(answering(edited=BASE, base=BASE), errata, *words)
    assert done.code == 3
    assert "all 3 answers are those of the base model" in done.stderr


def test_what_moved_beside_it_is_a_gate(errata: Errata, noted: Path) -> None:
    moved = {**EDITED, "The capital of Italy is": " Rome", "France": " Rome Rome"}
    words = ("verify", str(noted), "--fail-over", "bare=0", "--fail-over", "neighbours=0.5")
    done = says(answering(edited=moved), errata, *words)
    assert done.code == 3
    assert "bare is 1, allowed 0" in done.stderr
    assert "neighbours" not in done.stderr
    done = says(answering(edited=moved), errata, "verify", str(noted), "--no-neighbours")
    assert done.code == 0


def test_cases_of_a_file_are_asked_and_locality_needs_the_base(errata: Errata, noted: Path) -> None:
    case = {
        "id": "a",
        "edits": [{"prompt": PROMPT, "target": "Rome"}],
        "probes": [
            {"prompt": "France has the capital", "target": "Rome", "kind": "generality",
             "name": "rephrase"},
            {"prompt": "Anna lives in", "target": "Berlin", "kind": "locality", "name": "other"},
        ],
    }  # fmt: skip
    Path("cases.jsonl").write_text(json.dumps(case) + "\n", encoding="utf-8")
    own = {"France has the capital": " Paris", "Anna lives in": " Berlin or so"}
    models = {"edited": EDITED | own, "base": BASE | own}
    words = ("verify", str(noted), "--cases", "cases.jsonl", "--served-model", "edited")
    done = says(answering(**models), errata, *words)
    assert done.code == 0, done.stderr
    assert "1 of 2 questions passed" in done.stdout
    assert "1 question not judged" in done.stderr
    done = says(answering(**models), errata, *words, "--endpoint-base", "base", "--require")
    assert done.code == 3
    assert "2 of 3 questions passed" in done.stdout
    assert "1 question failed, required none" in done.stderr
    gate = ("--fail-under", "generality.rephrase=0.5")
    done = says(answering(**models), errata, *words, *gate)
    assert done.code == 3
    assert "generality.rephrase is 0.000, required 0.5" in done.stderr.replace(" (top None)", "")


def test_a_chat_is_asked_as_a_chat(errata: Errata, noted: Path) -> None:
    stub = answering(edited=EDITED)
    assert says(stub, errata, "verify", str(noted), "--chat", "user").code == 0
    assert [body["messages"][0]["role"] for body in stub.seen] == ["user"] * 3
    reply = {**EDITED, PROMPT: "The capital of France is Rome.", "France": "France is a country"}
    done = says(answering(edited=reply), errata, "verify", str(noted), "--chat", "user")
    assert done.code == 0, done.stderr
    assert "neighbour moved" not in done.stdout  # what was recorded was not said in a chat
    assert "2 questions not judged" in done.stderr
    models = {"edited": reply, "base": {**BASE, "France": "France is a country! It lies"}}
    words = ("verify", str(noted), "--chat", "user", "--endpoint-base", "base")
    done = says(answering(**models), errata, *words, "--fail-over", "bare=0")
    assert done.code == 0, done.stderr
    assert "0 of 1 neighbour moved" in done.stdout
    models["edited"] = {**reply, "France": "France is Rome"}
    done = says(answering(**models), errata, *words, "--fail-over", "bare=0")
    assert done.code == 3


def test_exports_are_asked_by_their_record(errata: Errata, noted: Path) -> None:
    for form in ("lora", "gguf", "merged"):
        assert errata("export", noted, "--to", form, "--out", form).code == 0
        done = says(answering(edited=EDITED), errata, "verify", form)
        assert done.code == 0, done.stderr
        assert "0 of 1 neighbour moved" in done.stdout
    Path("lora/errata.json").unlink()
    done = says(answering(edited=EDITED), errata, "verify", "lora")
    assert done.code == 1
    assert "--cases FILE" in done.stderr


def test_answers_are_kept(errata: Errata, noted: Path) -> None:
    says(answering(edited=BASE), errata, "verify", str(noted), "--out", "kept")
    kept = json.loads(Path("kept/served.json").read_text(encoding="utf-8"))
    assert kept["counts"]["failed"] == 1


def test_some_answers_missing_is_no_pass_and_loses_nothing(errata: Errata, noted: Path) -> None:
    stub = answering(edited=EDITED)
    stub.before = lambda path, body: (
        (500, {"error": "broken"}, {}) if "Italy" in str(body) else None
    )
    done = says(stub, errata, "verify", str(noted))
    assert done.code == 3
    assert f"✓ {PROMPT}" in done.stdout
    assert "1 question not answered: http" in done.stdout
    assert "answers 500: broken" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--served-model", "x"), 1, "serves edited, base; not x"),
        ((), 2, "Say which: --served-model NAME"),
        (("--served-model", "edited", "--endpoint-base", "edited"), 2, "edited model itself"),
        (("--served-model", "edited", "--endpoint-base", "y"), 1, "not y"),
        (("--served-model", "edited", "--fail-over", "sentences=1"), 2, "--fail-over sentences"),
    ],
)
def test_mistakes(errata: Errata, noted: Path, words: Any, code: int, said: str) -> None:
    done = says(answering(edited=EDITED, base=BASE), errata, "verify", str(noted), *words)
    assert (done.code, done.stdout) == (code, "")
    assert said in done.stderr


def test_a_server_that_is_down(errata: Errata, noted: Path) -> None:
    done = errata("verify", noted, "--endpoint", "http://127.0.0.1:9", "--retries", "0")
    assert (done.code, done.stdout) == (1, "")
    assert "nothing answers at http://127.0.0.1:9/v1/models" in done.stderr
    done = errata("verify", noted, "--endpoint", "ftp://x")
    assert done.code == 2
    for flag in ("--served-model", "--endpoint-base"):
        done = errata("verify", noted, flag, "x")
        assert done.code == 2
        assert "--endpoint" in done.stderr
