"""The main paths on a real pretrained model: SmolLM2-135M-Instruct, fetched by `make test-real`.

What is asserted of its answers was seen on these very weights (their digest is checked first).
"""

from __future__ import annotations

import json
import math
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


# ---------------------------------------------------------------------- text as the model reads it


def greedy(lm: errata.LM, patch: errata.Patch, edits: list[errata.Edit]) -> list[bool]:
    """Return for each edit whether the model says its target under the patch."""
    return [bool(view.hit_after) for view in patch.compare(lm, edits)]


def test_a_plain_edit_is_made_so_that_it_holds_in_the_chat(lm: errata.LM) -> None:
    plain = errata.Edit(PROMPT, "Rome", subject="France")
    chat = errata.Edit(PROMPT, "Rome", subject="France", chat="user")
    asked = errata.Edit("What is the capital of France?", "Rome", chat="user")
    alone = errata.edit(lm, plain, contexts="memit", moments_text="world")
    # as before: taken as plain text, and astray in the chat
    assert greedy(lm, alone, [plain, chat, asked]) == [True, False, False]
    both = errata.edit(lm, plain, contexts="memit+chat", moments_text="world")
    assert greedy(lm, both, [plain, chat, asked]) == [True, True, True]
    (view,) = both.compare(lm, ["What is the capital of Germany?"], chat="user")
    assert "Berlin" in view.says_after


def test_an_edit_can_be_made_in_the_chat(lm: errata.LM) -> None:
    chat = errata.Edit(PROMPT, "Rome", subject="France", chat="user")
    made = errata.edit(lm, chat, editor="ft")
    assert greedy(lm, made, [chat]) == [True]
    both = errata.edit(lm, [chat, errata.Edit(PROMPT, "Rome")], editor="ft")  # by giving it twice
    assert greedy(lm, both, list(both.edits)) == [True, True]


def test_the_command_line_edits_and_asks_in_the_chat(tmp_path: Path) -> None:
    words = ("edit", "--model", MODEL, "--prompt", PROMPT, "--target", "Rome", "--chat")
    code, out = call(*words, "--editor", "ft", "--out", tmp_path / "rome", "--require")
    assert code == 0
    assert "(chat:" in out
    code, out = call("ask", tmp_path / "rome", "--prompt", PROMPT, "--chat", "--json")
    (answer,) = json.loads(out)["answers"]
    assert first_word(answer["patch"]["says"]) == "Rome"
    assert call("verify", tmp_path / "rome", "--require")[0] == 0


def test_a_prompt_that_ends_in_a_space_asks_the_same(lm: errata.LM) -> None:
    """Read as a token by itself, the space takes Paris from 0.7725 to 0.0096."""
    row = lm.row(PROMPT, "Paris")
    assert lm.row(f"{PROMPT} ", "Paris") == row
    assert lm.row(f"{PROMPT} ") == lm.row(PROMPT)
    published = lm.row(f"{PROMPT} ", "Paris", joiner=" ")
    natural, odd = (score.logprobs[0] for score in lm.score([row, published]))
    assert (math.exp(natural), math.exp(odd)) == pytest.approx((0.7725, 0.0096), abs=1e-3)


def test_what_the_template_writes_is_what_transformers_renders(lm: errata.LM) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    expected = lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    row = lm.row(PROMPT, "Paris", "France", chat="user")
    assert list(row.ids[: row.prompt_length]) == list(expected["input_ids"])
    assert lm.text(row.labels) == "Paris"
    assert lm.text(row.ids[row.subject[0] : row.subject_last + 1]).strip() == "France"
