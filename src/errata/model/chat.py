"""A question in the model's own chat template: as a user's message, up to where the answer begins.

What a template puts around a message is found by rendering a marker in its place, so that no list
of templates is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from errata.case import Chat, check_chat
from errata.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = "You are a helpful assistant."
"""System message where a chat is to have one and none is given."""

_MARKER, _ANSWER = "\ue010question\ue011", "\ue012answer\ue013"  # no text holds these
_PLAIN = "Ask it as plain text (chat off), or load the instruction-tuned model."


@dataclass(frozen=True)
class Frame:
    """What a chat template puts around a user's message.

    Attributes:
        head: All that stands in front of the message: other messages and headers.
        tail: All that stands behind it, up to where the answer begins.
        strips: Whether the template takes white space off the ends of messages.
        joiner: White space that the template puts in front of an answer.
    """

    head: str
    tail: str
    strips: bool
    joiner: str

    def around(self, message: str) -> tuple[str, int]:
        """Return the text up to where the answer begins, and where the message begins in it.

        White space that the template takes off counts as if it stood there.
        """
        if not self.strips:
            return self.head + message + self.tail, len(self.head)
        gone = len(message) - len(message.lstrip())
        return self.head + message.strip() + self.tail, len(self.head) - gone


_FRAMES: WeakKeyDictionary[Any, dict[tuple[object, ...], Frame]] = WeakKeyDictionary()


def frame_of(tokenizer: PreTrainedTokenizerBase, chat: Chat, system: str | None = None) -> Frame:
    """Return what the tokenizer's chat template puts around a user's message.

    Args:
        tokenizer: Carries the template.
        chat: `user` or `system+user`.
        system: The system message; default: `SYSTEM`.

    Raises:
        DataError: If the chat is unknown.
        ModelError: If there is no template, or it refuses these messages.
    """
    check_chat(chat, system)
    template = tokenizer.chat_template
    if not template:
        raise ModelError("this model has no chat template", _PLAIN)
    kept = _FRAMES.setdefault(tokenizer, {})
    key = (str(template), chat, system)
    if key not in kept:
        told = [] if chat == "user" else [{"role": "system", "content": system or SYSTEM}]
        kept[key] = _found(tokenizer, told)
    return kept[key]


def _found(tokenizer: PreTrainedTokenizerBase, told: list[dict[str, str]]) -> Frame:
    text = _rendered(tokenizer, [*told, {"role": "user", "content": _MARKER}])
    if text.count(_MARKER) != 1:
        raise ModelError(
            f"the chat template shows the question {text.count(_MARKER)} times; expected it once",
            "Ask it as plain text (chat off).",
        )
    head, _, tail = text.partition(_MARKER)
    spaced = f"\t{_MARKER}\t"  # no template writes these itself
    strips = spaced not in _rendered(tokenizer, [*told, {"role": "user", "content": spaced}])
    answered = [
        *told,
        {"role": "user", "content": _MARKER},
        {"role": "assistant", "content": _ANSWER},
    ]
    between = ""
    try:
        whole = _rendered(tokenizer, answered, open_=False)
    except ModelError:  # it may take questions only
        whole = ""
    start = head + _MARKER + tail
    if whole.startswith(start) and _ANSWER in whole:
        between = whole[len(start) :].partition(_ANSWER)[0]
    return Frame(head, tail, strips, between if between.isspace() else "")


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], open_: bool = True
) -> str:
    """Render messages; with the header of the answer if it is left open.

    Models that can think aloud are asked not to: what counts is the first thing they say.
    """
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=open_, enable_thinking=False
        )
    except Exception as error:
        # a template raises errors of the language that it is written in
        if not (isinstance(error, TypeError | ValueError | ImportError)
                or type(error).__module__.startswith("jinja2")):  # fmt: skip
            raise
        refused = messages[0]["role"] == "system"
        raise ModelError(
            f"the chat template refuses {'a system message' if refused else 'this'}: {error}",
            "Ask with chat user." if refused else "Ask it as plain text (chat off).",
        ) from None
    return str(text)


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: Any) -> frozenset[int]:
    """Return the tokens at which a model ends its text, or its turn in a chat."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = named if isinstance(named, list | tuple) else [named]
    table = tokenizer.added_tokens_decoder
    ends = {token for token in named
            if isinstance(token, int) and token in table and table[token].special}  # fmt: skip
    own = tokenizer.eos_token_id
    return frozenset(ends | {own} if isinstance(own, int) else ends)
