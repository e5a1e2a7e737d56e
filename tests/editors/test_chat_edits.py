"""Edits asked in the chat, by every editor, and edits that hold as plain text and in the chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from errata.case import Edit
from errata.editors import editors
from errata.editors.base import Editor
from errata.errors import ModelError
from errata.locate.contexts import (
    Context,
    Contexts,
    ContextSettings,
    context_count,
    get_contexts,
    given_contexts,
    other_forms,
)
from errata.locate.keys import edit_keys
from errata.locate.rows import edit_rows
from errata.model.lm import LM
from errata.patch import Patch
from errata.testing.models import tiny_lm, tiny_tokenizer

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/{{ m.role }}]{% endfor %}"
EDIT = Edit("The capital of France is", "Rome", subject="France", chat="user")
RENDERED = Edit("[user]The capital of France is[/user]", "Rome", subject="France", joiner="")
PLAIN = replace(EDIT, chat="off")

SAME = 1e-12
"""Relative. Equal tokens give equal bits, but of what is computed once and then read from the cache
(AlphaEdit: 1.2e-15)."""
BY_TEXT = {"ike", "rag", "ke", "grace", "lemoe", "wise", "memoir", "erase"}
"""These also read the text of an edit: as a context (two), as a condition, as a seed."""
NAMES = [name for name, entry in editors.all.items() if entry.is_own and "+" not in name]


@pytest.fixture(scope="module")
def lm() -> LM:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE  # pyright: ignore[reportAttributeAccessIssue]
    return LM(tiny_lm("gpt2").model, tokenizer, name="tiny-gpt2")


@pytest.fixture(autouse=True)
def _files_of_its_own(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(cache_folder))


def tensors(patch: Patch) -> Mapping[str, Tensor]:
    found = {}
    for number, change in enumerate(patch.changes):
        found |= {f"{number} {name}": tensor for name, tensor in change.tensors().items()}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_in_the_chat_is_that_of_the_rendered_text(
    lm: LM, make: Callable[..., Editor], name: str
) -> None:
    # a context would stand inside the message, and in front of a text that is rendered by hand
    own = {"contexts": "bare"} if "contexts" in editors.load(name).Config.model_fields else {}
    editor = make(name, **own)
    in_chat = editor.edit_one(lm, [EDIT])
    by_hand = make(name, **own).edit_one(lm, [RENDERED])
    assert in_chat.edits == tuple(editor.meant(lm, [EDIT]))
    assert in_chat.edits[0].question == EDIT.question
    if name in BY_TEXT:
        return
    left, right = tensors(in_chat), tensors(by_hand)
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        error = (tensor - right[key]).abs().max() / right[key].abs().max().clamp(min=1e-30)
        assert error <= SAME, (key, error)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_a_template_is_named(make: Callable[..., Editor], name: str) -> None:
    if name in ("none", "ike"):
        pytest.skip("asks the model nothing")
    with pytest.raises(ModelError, match="no chat template"):
        make(name).edit_one(tiny_lm("gpt2"), [EDIT])


# ---------------------------------------------------------------------- contexts


def test_contexts_with_the_chat_put_every_prompt_both_ways(lm: LM) -> None:
    contexts = given_contexts(["{}", "I think so. {}", "chat"])
    assert contexts == Contexts(("", "I think so. "), both=True)
    texts = [lm.text(row.ids[: row.prompt_length]) for row in edit_rows(lm, PLAIN, contexts)]
    assert texts == [
        "The capital of France is",
        "I think so. The capital of France is",
        "[user]The capital of France is[/user]",
        "[user]I think so. The capital of France is[/user]",
        "France is a",
    ]
    for row in edit_rows(lm, PLAIN, contexts)[:-1]:
        assert lm.text(row.ids[: row.subject_last + 1]).endswith("capital of France")
        assert lm.text(row.labels).strip() == "Rome"
    # of an edit in the chat the other way is plain text
    assert Context(other=True).put(EDIT) == PLAIN
    assert Context(other=True).put(replace(PLAIN, joiner=" ")) == EDIT


def test_mean_keys_are_those_of_both_forms(lm: LM) -> None:
    contexts = given_contexts(["{}", "I think so. {}", "chat"])
    both = edit_keys(lm, [PLAIN], contexts, [1])[1]
    plain = edit_keys(lm, [PLAIN], Contexts(contexts.prefixes), [1])[1]
    chat = edit_keys(lm, [EDIT], Contexts(contexts.prefixes), [1])[1]
    expected = (plain.mean_key + chat.mean_key) / 2
    assert torch.allclose(both.mean_key, expected, rtol=0, atol=1e-12)
    assert torch.equal(both.key, plain.key)
    # two levels: the bare prompts weigh one half together
    weights = contexts.weights("two_level").tolist()
    assert weights == [0.25, 0.25, 0.25, 0.25]
    longer = Contexts(("", "a ", "b "), both=True).weights("two_level").tolist()
    assert longer == [0.25, 0.125, 0.125, 0.25, 0.125, 0.125]
    assert Contexts(("",), both=True).weights("two_level").tolist() == [0.5, 0.5]


def test_recipes_take_the_chat_along(lm: LM) -> None:
    plain = get_contexts(lm, ContextSettings(contexts="memit"))
    chat = get_contexts(lm, ContextSettings(contexts="memit+chat"))
    assert chat == replace(plain, both=True)
    assert len(chat) == 2 * len(plain)
    default = get_contexts(lm, ContextSettings(contexts="chat"))
    assert default == replace(get_contexts(lm, ContextSettings()), both=True)
    assert context_count(ContextSettings(contexts="bare+chat")) == 2
    assert context_count(ContextSettings(contexts="chat")) == 42
    with pytest.raises(ModelError, match="no chat template\nLeave chat out of the contexts"):
        get_contexts(tiny_lm("gpt2"), ContextSettings(contexts="bare+chat"))


def test_what_else_an_edit_is_asked_as() -> None:
    assert other_forms([PLAIN], "rome") == other_forms([PLAIN], None) == []
    assert other_forms([PLAIN], "chat") == other_forms([PLAIN], ("{}", "chat")) == [EDIT]
    assert other_forms([EDIT], "rome") == other_forms([EDIT], "rome+chat") == [PLAIN]


@pytest.mark.parametrize("name", ["rome", "memit"])
def test_chat_contexts_bring_an_edit_into_the_chat(
    lm: LM, make: Callable[..., Editor], name: str
) -> None:
    def likely(patch: Patch) -> list[float]:
        with patch.applied(lm):
            scores = lm.score([lm.row_of(PLAIN), lm.row_of(EDIT)])
        return [sum(score.logprobs) for score in scores]

    before = likely(Patch.for_model(lm, [], editor="none"))
    both = likely(make(name, contexts="bare+chat").edit_one(lm, [PLAIN]))
    alone = likely(make(name, contexts="bare").edit_one(lm, [PLAIN]))
    assert both[0] > before[0]
    assert both[1] > max(alone[1], before[1])
