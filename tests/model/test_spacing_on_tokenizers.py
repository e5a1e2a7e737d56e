"""What spacing makes of real tokenisation: every tokenizer at hand, every script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import users_cache
from tests.model.some_tokenizers import FAMILIES, SENTENCES, some_tokenizer
from tests.test_spacing import SPACELESS
from tests.tiny_models import tiny_tokenizer
from tokenizers.models import Unigram
from transformers import AutoTokenizer, GPT2TokenizerFast

import errata
from errata.data import load_cases
from errata.model.tokens import encode_row


def _gpt2(folder: Path) -> Any:
    vocabulary = json.loads((folder / "encoder.json").read_text())
    lines = (folder / "vocab.bpe").read_text().splitlines()[1:]
    merges = [tuple(line.split()) for line in lines if line]
    return GPT2TokenizerFast(vocab=vocabulary, merges=merges)


def _at(folder: Path, read: Callable[[Path], Any] = AutoTokenizer.from_pretrained) -> Any:
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder.name}")
    return read(folder)


OTHERS: dict[str, Callable[[Path], Any]] = {
    "tiny": lambda shared: tiny_tokenizer(),
    "tiny, bos": lambda shared: tiny_tokenizer(bos=True),
    "pocket": lambda shared: errata.load("pocket").tokenizer,
    "gpt2, published": lambda shared: _at(shared / "data" / "tokenizers" / "gpt2", _gpt2),
    "reference": lambda shared: _at(shared / "reference" / "models" / "tiny-gpt2"),
    "smollm2": lambda shared: _at(users_cache() / "models" / "smollm2"),
}
WITHOUT_SHARED = ("tiny", "tiny, bos", "pocket", "smollm2")


@pytest.fixture(scope="module", params=[*FAMILIES, *OTHERS])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    name = request.param
    if name in FAMILIES:
        return some_tokenizer(name)
    shared = Path() if name in WITHOUT_SHARED else request.getfixturevalue("shared")
    return OTHERS[name](shared)


def said(tokenizer: Any, ids: tuple[int, ...]) -> str:
    """Return the text of tokens behind others: some decoders drop a space at the front."""
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    text = tokenizer.decode([*before, *ids], clean_up_tokenization_spaces=False)
    return text.removeprefix(tokenizer.decode(before))


def splits(tokenizer: Any, target: str) -> bool:
    """Say whether the space in front of a word is a token by itself anywhere in a text."""
    parts = tokenizer(f"a {target}", add_special_tokens=False)["input_ids"]
    return said(tokenizer, tuple(parts[1:2])) == " "


@pytest.mark.parametrize("script", SENTENCES)
@pytest.mark.parametrize("typed", ["", " "], ids=["", "space typed"])
def test_labels_are_the_answer(tokenizer: Any, script: str, typed: str) -> None:
    prompt, target = SENTENCES[script]
    row = encode_row(tokenizer, prompt + typed, target)
    expected = target if script in SPACELESS else f" {target}"
    unknown = tokenizer.unk_token_id in row.labels and tokenizer.unk_token_id is not None
    assert unknown or said(tokenizer, row.labels) == expected
    # nothing stands in the tokens that a writer would not put there
    whole = tokenizer(prompt + expected)["input_ids"]
    assert [*row.ids, row.labels[-1]] == whole
    assert list(row.labels) == whole[row.prompt_length :]
    # no label is a space, but where the tokenizer has no word or letter with one in front; and none
    # begins with one that was forced into a script without spaces
    first = said(tokenizer, row.labels[:1])
    assert first.strip(" ") or splits(tokenizer, target)
    assert not (first.startswith(" ") and script in SPACELESS)


@pytest.mark.parametrize("script", SENTENCES)
def test_a_prompt_by_itself_ends_where_the_answer_begins(tokenizer: Any, script: str) -> None:
    prompt, target = SENTENCES[script]
    for typed in ("", " "):
        row = encode_row(tokenizer, prompt + typed, target)
        alone = encode_row(tokenizer, prompt + typed)
        assert alone.ids == row.ids[: row.prompt_length]
        assert alone.positions == row.positions[:1]


def test_the_published_rule_of_zsre_has_no_space_for_a_label(tokenizer: Any) -> None:
    """Its suffix ends in a space and the answer brings one: SentencePiece has a token of two."""
    if isinstance(tokenizer.backend_tokenizer.model, Unigram):
        pytest.skip("splits spaces by likelihood, not by the text around them")
    for case in load_cases("zsre:sample").cases:
        for question in (*case.edits, *case.of("generality")):
            assert question.prompt.endswith(" The answer is: ")
            row = encode_row(
                tokenizer, question.prompt, question.target, joiner=question.joiner
            )  # fmt: skip
            whole = tokenizer(f"{question.prompt} {question.target}")["input_ids"]
            assert [*row.ids, row.labels[-1]] == whole
            first = said(tokenizer, row.labels[:1])
            assert first.strip(" ") or splits(tokenizer, question.target)
            assert said(tokenizer, row.labels).lstrip(" ") == question.target


def test_without_it_sentencepiece_has_one() -> None:
    """What the rule is for: the first token that the prompt alone does not have is two spaces."""
    tokenizer = some_tokenizer("llama2")
    prompt, target = "Which city? The answer is: ", "Rome"
    before = tokenizer(prompt)["input_ids"]
    whole = tokenizer(f"{prompt} {target}")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(whole[len(before) - 1 : len(before)]) == ["▁▁"]
    row = encode_row(tokenizer, prompt, target, joiner=" ")
    assert row.prompt_length == len(before)
    assert tokenizer.convert_ids_to_tokens(before[-1:]) == ["▁"]
    assert tokenizer.convert_ids_to_tokens(row.ids[row.prompt_length - 1]) == "▁▁"
