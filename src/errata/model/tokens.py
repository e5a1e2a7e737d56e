"""Text to token rows: one joint tokenisation, subjects by character offsets, right-padded batches.

Rules (the sources' pitfalls are listed in docs/fidelity.md):

* prompt and target are tokenised together, as one text in which `errata.spacing` says what stands
  between them, so the target's ids are what the model would really see;
* the supervised positions start where the prompt's own tokens end; a token that joins the space at
  its end with that of the target is its own;
* the subject is found by character offsets in the prompt, never by counting tokens of its own
  tokenisation;
* special tokens are those the tokenizer adds by itself, none where the text brings its own (a BOS,
  a chat template's header); trailing ones (EOS) are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from errata.case import Chat, SubjectAt, subject_starts
from errata.errors import EditError, ModelError
from errata.model.chat import frame_of
from errata.model.spelling import nearest
from errata.spacing import AUTO, asked, continued
from errata.untrusted import check_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenised sequence, without the last token of its target (nothing is predicted from it).

    Attributes:
        ids: Token ids given to the model.
        positions: Positions whose logits are wanted, each predicting the label of the same index.
        labels: Expected next token at each position; empty if there is no target, in which case
            `positions` holds only the last position.
        prompt_length: Tokens of the prompt, special tokens included.
        subject: First and last index of the tokens that overlap the subject, if one was given.
        patch: Number of the patch in the active stack that it runs under; -1: the base model.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    labels: tuple[int, ...]
    prompt_length: int
    subject: tuple[int, int] | None = None
    patch: int = -1

    @property
    def subject_last(self) -> int:
        """Index of the last token that overlaps the subject.

        Raises:
            EditError: If the row was made without a subject.
        """
        if self.subject is None:
            raise EditError(
                "this edit has no subject", 'Give it one: --subject, or "subject" in JSONL.'
            )
        return self.subject[1]


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows of similar length.

    Attributes:
        input_ids: `[B, T]`.
        attention_mask: `[B, S]`, 1 on real tokens; `S` is `T`, or longer behind a cached prefix.
        position_ids: `[B, T]`, counted from the left.
        index: For each row of the batch, its number in the list it came from.
        prompts: For each row, the tokens of its prompt among those of the batch; empty: unknown,
            all of them.
        patches: For each row, its patch in the active stack, -1: the base model; empty: -1 for all.
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B S"]
    position_ids: Int[Tensor, "B T"]
    index: tuple[int, ...]
    prompts: tuple[int, ...] = ()
    patches: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.index)


def find_subject(prompt: str, subject: str, at: SubjectAt = "last") -> tuple[int, int]:
    """Return the character span of one of the subject's occurrences, whole words preferred.

    Args:
        prompt: The question.
        subject: The subject.
        at: Which occurrence: `first`, `last`, or a number from 1.

    Raises:
        EditError: If the subject does not occur in the prompt, or not so often.
    """
    subject = subject.strip()
    starts = subject_starts(prompt, subject)
    if not starts:
        raise EditError(
            f"the subject {subject!r} does not occur in the prompt {prompt!r}",
            nearest(prompt, subject),
        )
    number = {"first": 1, "last": len(starts)}.get(str(at), at)
    if not isinstance(number, int) or not 1 <= number <= len(starts):
        raise EditError(
            f"subject_at is {at!r}: the subject {subject!r} occurs {len(starts)} times in the "
            f"prompt {prompt!r}",
            "Give first, last, or a number from 1.",
        )
    start = starts[number - 1]
    return start, start + len(subject)


def special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the texts of a tokenizer's special tokens."""
    if tokenizer not in _SPECIAL:
        added = tokenizer.added_tokens_decoder.values()
        told = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
        _SPECIAL[tokenizer] = tuple(sorted(filter(None, told), key=len, reverse=True))
    return _SPECIAL[tokenizer]


_SPECIAL: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()


def opening(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the special tokens that a text itself begins with; none are put in front of it then.

    A text that begins with a BOS has it already; one that begins with another special token was
    rendered by a chat template, which puts a BOS where the model wants one.
    """
    known, length = special_texts(tokenizer), 0
    while found := next((word for word in known if text.startswith(word, length)), ""):
        length += len(found)
    return text[:length]


def _encode(
    tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool = True
) -> tuple[list[int], list[tuple[int, int]]]:
    check_text(text)
    encoded = tokenizer(
        text, return_offsets_mapping=True, return_special_tokens_mask=True,
        add_special_tokens=add_special_tokens, verbose=False,  # of long texts, which are told here
    )  # fmt: skip
    ids = list(encoded["input_ids"])
    offsets = [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
    special = list(encoded["special_tokens_mask"])
    while ids and special[-1]:
        for kept in (ids, offsets, special):
            kept.pop()
    return ids, offsets


@dataclass(frozen=True)
class _Layout:
    """The text that a model reads.

    Attributes:
        start: Up to where the answer begins.
        rest: The answer.
        prompt_at: Where the prompt begins.
        adds_special: Whether the tokenizer adds its special tokens.
    """

    start: str
    rest: str
    prompt_at: int
    adds_special: bool


def _laid_out(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    target: str | None,
    prefix: str,
    joiner: str,
    chat: Chat,
    system: str | None,
) -> _Layout:
    if chat != "off":
        frame = frame_of(tokenizer, chat, system)
        text, message_at = frame.around(prefix + prompt)
        rest = ""
        if target is not None and joiner == AUTO:
            rest = frame.joiner + target.lstrip(" ")
        elif target is not None:
            rest = continued(text, target, joiner)[1]
        return _Layout(text, rest, message_at + len(prefix), adds_special=False)
    # a context goes behind the special tokens that a prompt brings
    head = opening(tokenizer, prompt)
    text = head + prefix + prompt[len(head) :]
    start, rest = asked(text, joiner), ""
    if target is not None:
        start, rest = continued(text, target, joiner)
    # the prompt, its special tokens counted as if they stood in front of it
    return _Layout(start, rest, len(prefix), adds_special=not opening(tokenizer, text))


def encode_row(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    target: str | None = None,
    subject: str | None = None,
    *,
    prefix: str = "",
    subject_at: SubjectAt = "last",
    joiner: str = AUTO,
    chat: Chat = "off",
    system: str | None = None,
    max_length: int | None = None,
) -> Row:
    """Tokenise `prefix + prompt (+ target)` and mark the supervised positions and the subject.

    Args:
        tokenizer: A fast tokenizer (offsets are needed).
        prompt: The question; the subject is searched here and not in the prefix.
        target: The answer, or None.
        subject: The subject, or None.
        prefix: Text put before the prompt (a context template).
        subject_at: Which occurrence of the subject in the prompt is meant.
        joiner: What stands between prompt and target: `auto`, or a text.
        chat: `user` or `system+user`: prefix and prompt are a user's message in the chat template.
        system: The system message.
        max_length: Largest number of tokens the model can take.

    Raises:
        EditError: If the subject does not occur in the prompt, or the target is empty or adds no
            token.
        ModelError: If the row is longer than `max_length`, or there is no such chat template.
    """
    if target == "":
        raise EditError(f"the target of {prompt!r} is empty", "Leave it out to ask without one.")
    text = _laid_out(tokenizer, prompt, target, prefix, joiner, chat, system)
    prompt_ids, offsets = _encode(tokenizer, text.start, text.adds_special)
    if not prompt_ids:
        raise EditError(f"the prompt {prompt!r} has no token")
    ids, prompt_length = prompt_ids, len(prompt_ids)
    if target is not None:
        ids, offsets = _encode(tokenizer, text.start + text.rest, text.adds_special)
        prompt_length = _answer_at(ids, offsets, prompt_ids, text)
        if prompt_length < 1 or prompt_length >= len(ids):
            raise EditError(f"the target {target!r} adds no token after the prompt {prompt!r}")
    span = None
    if subject is not None:
        start, end = (text.prompt_at + at for at in find_subject(prompt, subject, subject_at))
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
        if not inside:
            raise EditError(f"no token of {prompt!r} overlaps the subject {subject!r}")
        span = (inside[0], inside[-1])
    labels = tuple(ids[prompt_length:])
    given = tuple(ids[:-1]) if labels else tuple(ids)
    if max_length is not None and len(given) > max_length:
        raise ModelError(
            f"{prompt[:60]!r}… needs {len(given)} tokens; the model's context holds {max_length}",
            "Shorten the prompt.",
        )
    first = prompt_length - 1
    positions = tuple(range(first, first + max(len(labels), 1)))
    return Row(given, positions, labels, prompt_length, span)


def _answer_at(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    prompt_ids: Sequence[int],
    text: _Layout,
) -> int:
    """Return the number of the first token of the answer; how many there are, if it has none."""
    at, border = len(prompt_ids), len(text.start)
    if list(ids[:at]) == list(prompt_ids):
        return at
    # A token spans the border: the target then begins with the first token that reaches past it,
    # and past spaces: SentencePiece has pieces of several, which hold the prompt's last one.
    past = border + len(text.rest) - len(text.rest.lstrip(" "))
    if not text.start.endswith(" "):
        past = border
    return next((i for i, (a, b) in enumerate(offsets) if b > past and b > a), len(ids))


def make_batch(
    rows: Sequence[Row], index: Sequence[int], pad: int, device: torch.device | str = "cpu"
) -> Batch:
    """Pad the rows of the given numbers on the right into one batch."""
    length = max(len(rows[i].ids) for i in index)
    ids = torch.full((len(index), length), pad, dtype=torch.long)
    mask = torch.zeros((len(index), length), dtype=torch.long)
    for at, i in enumerate(index):
        n = len(rows[i].ids)
        ids[at, :n] = torch.tensor(rows[i].ids, dtype=torch.long)
        mask[at, :n] = 1
    positions = torch.arange(length).expand(len(index), length).contiguous()
    prompts = tuple(min(rows[i].prompt_length, len(rows[i].ids)) for i in index)
    patches = tuple(rows[i].patch for i in index)
    return Batch(
        ids.to(device), mask.to(device), positions.to(device), tuple(index), prompts, patches
    )


def bucket(
    rows: Sequence[Row],
    max_tokens: int,
    order: Iterable[int] | None = None,
    max_padding: int | None = None,
) -> Iterator[list[int]]:
    """Yield groups of row numbers of similar length whose padded size stays under `max_tokens`.

    Args:
        rows: All rows.
        max_tokens: Budget of padded tokens per group; a single longer row makes its own group.
        order: Row numbers in the order wanted; default: by length, so padding stays small.
        max_padding: Most padding in a group. For lengths that grow evenly the least work is done
            if this is what a forward pass costs by itself, expressed in tokens.
    """
    numbers = sorted(range(len(rows)), key=lambda i: len(rows[i].ids)) if order is None else order
    group: list[int] = []
    longest = real = 0
    for i in numbers:
        length = len(rows[i].ids)
        longest_now, real_now = max(longest, length), real + length
        padded = longest_now * (len(group) + 1)
        wasteful = max_padding is not None and padded - real_now > max_padding
        if group and (padded > max_tokens or wasteful):
            yield group
            group, longest_now, real_now = [], length, length
        group.append(i)
        longest, real = longest_now, real_now
    if group:
        yield group


def patched(rows: Iterable[Row], patches: Iterable[int]) -> list[Row]:
    """Return the rows, each under the patch of that number in the active stack; -1: none."""
    return [
        row if row.patch == patch else replace(row, patch=patch)
        for row, patch in zip(rows, patches, strict=True)
    ]


def share_rows(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """Join rows of the same prompt and tokens under the same patch, so that each is run once.

    Two answers to one question are such rows whenever both have a single token.

    Returns:
        The different rows, each with the positions of all that it stands for and without labels;
        and for each given row the number of the one that stands for it.
    """
    number: dict[tuple[int, tuple[int, ...], int], int] = {}
    hosts = [
        number.setdefault((row.patch, row.ids, row.prompt_length), len(number)) for row in rows
    ]
    positions: list[set[int]] = [set() for _ in number]
    for row, host in zip(rows, hosts, strict=True):
        positions[host].update(row.positions)
    return [
        Row(ids, tuple(sorted(wanted)), (), prompt, patch=patch)
        for (patch, ids, prompt), wanted in zip(number, positions, strict=True)
    ], hosts


def positions_of(
    rows: Sequence[Row], index: Sequence[int], device: torch.device | str = "cpu"
) -> Int[Tensor, "N 2"]:
    """Return (row of the batch, position) for every supervised position, row by row."""
    pairs = [(at, p) for at, i in enumerate(index) for p in rows[i].positions]
    return torch.tensor(pairs, dtype=torch.long, device=device).reshape(-1, 2)
