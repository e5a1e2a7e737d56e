"""The main paths on a real pretrained model: SmolLM2-135M-Instruct, fetched by `make test-real`.

What is asserted of its answers was seen on these very weights (their digest is checked first).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

import errata
from errata.cli.app import app
from errata.model import named
from errata.model.weights import weight_fingerprint

pytestmark = pytest.mark.real

MODEL = "smollm2"
WEIGHTS = "4d79c557e4da"
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def lm() -> errata.LM:
    there = (named.cache_root() / "models" / MODEL / "config.json").is_file()
    if not there and os.environ.get("ERRATA_FETCH") != "1":
        pytest.skip("SmolLM2 has not been fetched: make test-real")
    lm = errata.load(MODEL)
    assert lm.fingerprint.startswith(WEIGHTS)
    return lm


@pytest.fixture(scope="module")
def patch(lm: errata.LM) -> errata.Patch:
    return errata.edit(lm, PROMPT, "Tokyo", subject="France", moments_text="world")


def call(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="errata")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def first_word(text: str) -> str:
    return text.split()[0].strip(".,")


def test_the_edit_is_taken_and_germany_stays(lm: errata.LM, patch: errata.Patch) -> None:
    questions = [PROMPT, "In France, the capital is", "The capital of Germany is"]
    views = list(patch.compare(lm, questions))
    assert [view.says_before.split()[0].strip(".,") for view in views] == [
        "Paris",
        "Paris",
        "Berlin",
    ]
    assert [view.says_after.split()[0].strip(".,") for view in views] == [
        "Tokyo",
        "Tokyo",
        "Berlin",
    ]
    assert weight_fingerprint(lm.model) == lm.fingerprint  # undone to the bit


def test_stacked_rows_are_the_patch_in_place(lm: errata.LM, patch: errata.Patch) -> None:
    rows = [lm.row(PROMPT, "Tokyo"), lm.row("The capital of Germany is", "Berlin")]
    with patch.applied(lm):
        expected = [score.logprobs[0] for score in lm.score(rows)]
    with errata.Stack(lm, [patch]) as stack:
        found = [score.logprobs[0] for score in lm.score(rows, stack=stack, groups=[0, 0])]
        base = [score.logprobs[0] for score in lm.score(rows)]
    assert found == pytest.approx(expected, abs=1e-4)
    assert base == [score.logprobs[0] for score in lm.score(rows)]


def test_the_way_from_a_patch_to_an_adapter(
    lm: errata.LM, patch: errata.Patch, tmp_path: Path
) -> None:
    saved = patch.save(tmp_path / "tokyo")
    code, out = call("verify", saved, "--fail-under", "reliability=0.95", "--json")
    assert code == 0
    assert json.loads(out)["reliability"] == 1.0
    code, _ = call("export", saved, "--to", "lora", "--out", tmp_path / "adapter")
    assert code == 0
    back = errata.Patch.from_lora(lm, tmp_path / "adapter")
    with patch.applied(lm):
        expected = lm.score([lm.row(PROMPT, "Tokyo")])[0].logprobs
    with back.applied(lm):
        found = lm.score([lm.row(PROMPT, "Tokyo")])[0].logprobs
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("editor", ["ft", "grace"])
def test_editors_without_moments_take(lm: errata.LM, editor: str) -> None:
    made = errata.edit(lm, PROMPT, "Tokyo", subject="France", editor=editor)
    (view,) = made.compare(lm, [PROMPT])
    assert first_word(view.says_after) == "Tokyo"


AT_ZERO = "France has its seat of government in the city of"
"""Its subject is the first token of the text, where this model has an attention sink."""


def test_a_subject_at_the_sink_is_edited_and_others_stay(lm: errata.LM) -> None:
    patch = errata.edit(lm, AT_ZERO, "Rome", subject="France", moments_text="world")
    with patch.applied(lm):
        says = [first_word(text) for text in lm.generate([
            AT_ZERO, "The capital of France is", "The capital of Germany is",
        ], 6)]  # fmt: skip
    assert says[0] == "Rome"
    assert says[1] in ("Paris", "Rome")
    assert says[2] == "Berlin"


def test_as_published_the_sink_is_written(lm: errata.LM, caplog: pytest.LogCaptureFixture) -> None:
    patch = errata.edit(
        lm, AT_ZERO, "Rome", subject="France", moments_text="world", sink_prefix="off"
    )
    assert "attention sink" in caplog.text
    with patch.applied(lm):
        assert first_word(lm.generate(["The capital of Germany is"], 6)[0]) != "Berlin"
