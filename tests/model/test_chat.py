"""Questions in a chat template, and special tokens that a text brings itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tests.model.some_tokenizers import CHATML, FAMILIES, some_tokenizer
from tests.tiny_models import tiny_tokenizer

from errata.case import Edit, Probe
from errata.errors import DataError, ModelError
from errata.model.chat import SYSTEM, frame_of, stop_ids
from errata.model.tokens import Row, encode_row

PROMPT = "The capital of France is"
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}<<S>>{{ m.content }}<</S>>"
    "{% elif m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TWICE = "{% for m in messages %}{{ m.content }} {{ m.content }}{% endfor %}"
QUESTIONS_ONLY = (
    "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('users only') }}{% endif %}"
    "[{{ m.content }}]{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "gemma": GEMMA}


def rendered(tokenizer: Any, told: str, system: str | None = None) -> list[int]:
    """Return the tokens as transformers renders them."""
    messages = [{"role": "user", "content": told}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    return list(found["input_ids"])


def covered(tokenizer: Any, row: Row) -> str:
    assert row.subject is not None
    first, last = row.subject
    return tokenizer.decode(row.ids[first : last + 1]).strip()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_rendered_as_transformers_renders_it(family: str, name: str) -> None:
    tokenizer = some_tokenizer(family, TEMPLATES[name])
    expected = rendered(tokenizer, PROMPT)
    alone = encode_row(tokenizer, PROMPT, subject="France", chat="user")
    assert list(alone.ids) == expected
    assert expected.count(tokenizer.bos_token_id) == 1  # the template's, and none in front of it
    row = encode_row(tokenizer, PROMPT, "Paris", "France", chat="user")
    between = " " if name == "llama2" else ""  # as this template writes answers
    text = frame_of(tokenizer, "user").around(PROMPT)[0]
    whole = tokenizer(f"{text}{between}Paris", add_special_tokens=False)["input_ids"]
    assert [*row.ids, row.labels[-1]] == whole
    assert row.ids[: row.prompt_length] == tuple(expected)
    assert covered(tokenizer, row) == covered(tokenizer, alone) == "France"


def test_the_subject_is_the_users_not_the_templates() -> None:
    tokenizer = some_tokenizer("gemma", GEMMA)
    for word in ("user", "model", "turn"):
        row = encode_row(tokenizer, f"It is the {word} of", "Rome", word, chat="user")
        assert tokenizer.decode(row.ids[: row.subject_last + 1]).endswith(f"It is the {word}")
    tokenizer = some_tokenizer("gpt2")
    row = encode_row(
        tokenizer, PROMPT, "Rome", "France", chat="system+user", system="France is large."
    )
    assert tokenizer.decode(row.ids[: row.subject_last + 1]).endswith("capital of France")


def test_a_context_stands_inside_the_message() -> None:
    tokenizer = some_tokenizer("gpt2")
    row = encode_row(tokenizer, PROMPT, "Rome", "France", prefix="I think so. ", chat="user")
    assert list(row.ids[: row.prompt_length]) == rendered(tokenizer, f"I think so. {PROMPT}")
    assert tokenizer.decode(row.ids[: row.subject_last + 1]).endswith("capital of France")


def test_white_space_that_a_template_takes_off_moves_no_subject() -> None:
    tokenizer = some_tokenizer("gpt2", LLAMA2)
    row = encode_row(tokenizer, f"  {PROMPT} ", "Rome", "France", chat="user")
    assert list(row.ids[: row.prompt_length]) == rendered(tokenizer, PROMPT)
    assert covered(tokenizer, row) == "France"


def test_an_answer_stands_behind_the_header_at_once() -> None:
    tokenizer = some_tokenizer("gpt2")
    for target in ("Rome", " Rome"):  # a leading space is a habit of plain text
        row = encode_row(tokenizer, PROMPT, target, chat="user")
        assert tokenizer.decode(row.labels) == "Rome"
    spaced = encode_row(tokenizer, PROMPT, "Rome", chat="user", joiner=" ")
    assert tokenizer.decode(spaced.labels) == " Rome"
    lines = encode_row(tokenizer, PROMPT, "\nRome", chat="user")
    assert tokenizer.decode(lines.labels) == "\nRome"


def test_a_system_message_has_a_default() -> None:
    tokenizer = some_tokenizer("gpt2")
    row = encode_row(tokenizer, PROMPT, chat="system+user")
    assert list(row.ids) == rendered(tokenizer, PROMPT, SYSTEM)
    row = encode_row(tokenizer, PROMPT, chat="system+user", system="Be brief.")
    assert list(row.ids) == rendered(tokenizer, PROMPT, "Be brief.")


def test_a_model_without_a_template_is_named() -> None:
    with pytest.raises(ModelError, match="has no chat template\nAsk it as plain text") as caught:
        encode_row(tiny_tokenizer(), PROMPT, "Rome", chat="user")
    assert "instruction-tuned" in str(caught.value.hint)


def test_a_template_that_refuses_a_system_message_is_named() -> None:
    tokenizer = some_tokenizer("gpt2", GEMMA)
    with pytest.raises(ModelError, match="refuses a system message: System role not supported"):
        encode_row(tokenizer, PROMPT, "Rome", chat="system+user")
    assert encode_row(tokenizer, PROMPT, "Rome", chat="user").labels


def test_odd_templates() -> None:
    with pytest.raises(ModelError, match="shows the question 2 times"):
        frame_of(some_tokenizer("gpt2", TWICE), "user")
    with pytest.raises(ModelError, match="refuses this"):
        frame_of(some_tokenizer("gpt2", "{{ messages.nothing.at.all }}"), "user")
    frame = frame_of(some_tokenizer("gpt2", QUESTIONS_ONLY), "user")
    assert (frame.head, frame.tail, frame.joiner) == ("[", "]", "")


@pytest.mark.parametrize(
    "make",
    [lambda **how: Edit("q", "a", **how), lambda **how: Probe("q", "a", "locality", "n", **how)],
)
def test_unknown_ways_of_asking_are_refused(make: Any) -> None:
    with pytest.raises(DataError, match=r"unknown chat 'usr'\nKnown: off, user, system\+user"):
        make(chat="usr")
    with pytest.raises(DataError, match="a system text with chat 'user' would not be read"):
        make(chat="user", system="Be brief.")
    with pytest.raises(DataError, match="system text is ' '"):
        make(chat="system+user", system=" ")
    with pytest.raises(DataError, match="joiner is 3"):
        make(joiner=3)


# ---------------------------------------------------------------------- special tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_brings_a_bos_gets_no_second_one(family: str) -> None:
    tokenizer = some_tokenizer(family)
    own = tokenizer(f"{tokenizer.bos_token}{PROMPT}", add_special_tokens=False)["input_ids"]
    row = encode_row(tokenizer, f"{tokenizer.bos_token}{PROMPT}", "Paris", "France")
    assert list(row.ids[: row.prompt_length]) == own
    assert row.ids.count(tokenizer.bos_token_id) == 1
    assert covered(tokenizer, row) == "France"


def test_with_a_bos_or_without_the_tokens_are_the_same() -> None:
    tokenizer = tiny_tokenizer(bos=True)
    plain = encode_row(tokenizer, PROMPT, "Paris", "France")
    assert encode_row(tokenizer, f"<bos>{PROMPT}", "Paris", "France") == plain
    before = encode_row(tokenizer, PROMPT, "Paris", "France", prefix="I think so. ")
    brought = encode_row(tokenizer, f"<bos>{PROMPT}", "Paris", "France", prefix="I think so. ")
    assert brought == before


def test_a_rendered_text_is_taken_as_it_is() -> None:
    """Rendered by hand, by a template that writes no BOS though the tokenizer would add one."""
    tokenizer = some_tokenizer("gpt2", CHATML.replace("{{ bos_token }}", ""))
    text = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    by_hand = encode_row(tokenizer, text, "Rome", "France")
    assert by_hand == encode_row(tokenizer, PROMPT, "Rome", "France", chat="user")
    assert tokenizer.bos_token_id not in by_hand.ids


def test_a_model_stops_where_its_turn_ends() -> None:
    tokenizer = some_tokenizer("gpt2")
    turn, bos = (tokenizer.convert_tokens_to_ids(word) for word in ("<|im_end|>", "a"))

    def stops(named: Any) -> frozenset[int]:
        model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=named))
        return stop_ids(tokenizer, model)

    assert stops([turn, tokenizer.eos_token_id]) == {turn, tokenizer.eos_token_id}
    # a configuration may name what is an ordinary word of this tokenizer
    assert stops(bos) == stops(None) == {tokenizer.eos_token_id}
    assert stops({"a": 1}) == stops([{}, []]) == {tokenizer.eos_token_id}
