"""RAG at work: which facts are near a question, and what the model says behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from errata.editors.ike.demos import encode
from errata.editors.ike.encoder import Embed, get_encoder
from errata.editors.rag.facts import KIND, FactMemory, Use, stopped
from errata.errors import ModelError
from errata.model.chat import Frame, frame_of
from errata.model.hooks import bare, nested
from errata.model.passes import Pass, wide
from errata.model.tokens import Row
from errata.patch.changes import route_kind

if TYPE_CHECKING:
    from errata.model.lm import LM

Text = tuple[int, ...]

REMEMBERED = 8192
"""Questions whose facts a router remembers: a generation asks about a prompt at every step."""

YES, NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")
"""What counts as an answer of the model to whether a fact bears on a question."""

NEUTRAL = -1
UNRELATED = "Water boils at one hundred degrees"
"""A fact that no question is about, against which `contrast` holds an answer."""

CONFIRM = (
    "Fact: {fact}\nQuestion: {question}\nDoes the fact give the answer to the question? "
    "Reply with Yes or No."
)


def encoder_of(lm: LM, name: str) -> Embed:
    """Return a sentence encoder, loaded once for a model."""
    return lm.once(("sentence encoder", name), lambda: get_encoder(lm, name))


@dataclass(frozen=True)
class Message:
    """A question taken out of its chat.

    Attributes:
        text: The question.
        at: Number of tokens in front of it: where facts are put.
    """

    text: str
    at: int


def frames(lm: LM) -> list[tuple[Text, Text]]:
    """Return the tokens that the model's chat puts around a user's message; empty: it has none."""
    return lm.once("tokens around a message", lambda: _frames(lm))


def _frames(lm: LM) -> list[tuple[Text, Text]]:
    if not lm.tokenizer.chat_template:
        return []
    found: list[Frame] = []
    for chat in ("system+user", "user"):
        try:
            found.append(frame_of(lm.tokenizer, chat))
        except ModelError:  # some templates take no system message
            continue

    def ids(text: str) -> Text:
        return tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    return [(ids(frame.head), ids(frame.tail)) for frame in found]


def message_of(lm: LM, prompt: Text) -> Message:
    """Return the question in the tokens of a prompt, and where facts go."""
    for head, tail in frames(lm):
        if head and prompt[: len(head)] == head:
            inner = prompt[len(head) :]
            if tail and inner[-len(tail) :] == tail:
                inner = inner[: -len(tail)]
            return Message(lm.text(inner).strip(), len(head))
    special = set(lm.tokenizer.all_special_ids)
    start = next((at for at, token in enumerate(prompt) if token not in special), 0)
    return Message(lm.text(prompt).strip(), start)


@route_kind(KIND)
class RagRouter:
    """Tells the model the facts that are near a question; others stay bit-equal to the model's.

    Args:
        lm: The model.
        config: What [`FactMemory.change`][errata.editors.rag.facts.FactMemory.change] wrote.
        tensors: The keys.

    Raises:
        PatchError: If another version wrote them.
        ModelError: If the sentence encoder is missing.
    """

    def __init__(self, lm: LM, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.lm, self.use = lm, Use.of(config)
        self.memory = FactMemory.of(config, tensors)
        self.keys = self.memory.keys.to(lm.device)
        self.embed = encoder_of(lm, self.use.encoder)
        self.found: dict[Text, tuple[int, ...]] = {}

    @staticmethod
    def together(routers: Sequence[RagRouter]) -> RagRouters:
        """Return what serves the routers of many patches at once."""
        return RagRouters(routers)

    def scope(self, seen: Pass) -> Bool[Tensor, " B"]:
        """Return which rows are answered behind facts."""
        return RagRouters([self]).scope(seen, _first(seen))

    def logits(
        self, seen: Pass, at: Int[Tensor, "N 2"], base: Float[Tensor, "N V"]
    ) -> Float[Tensor, "N V"]:
        """Return the model's logits at these places behind the facts near each row."""
        return RagRouters([self]).logits(seen, _first(seen), at, base)

    def rewritten(self, seen: Pass) -> list[Text]:
        """Return the tokens of each row, with the facts near it told in front of its question."""
        return RagRouters([self]).rewritten(seen, _first(seen))

    def near(self, query: Float[Tensor, " d"]) -> tuple[int, ...]:
        """Return the numbers of the facts near a question, the nearest first."""
        likeness = self.keys.to(query) @ query
        order = torch.sort(likeness, descending=True, stable=True).indices[: self.use.top]
        return tuple(int(i) for i in order if float(likeness[i]) >= self.use.threshold)


class RagRouters:
    """Routers of several patches: questions are encoded and asked together.

    Args:
        routers: One per patch.
    """

    def __init__(self, routers: Sequence[RagRouter]) -> None:
        self.routers, self.lm = list(routers), routers[0].lm

    @torch.no_grad()
    def scope(self, seen: Pass, owner: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Return which rows have facts near them; `owner` is the number of each row's router."""
        rows = self._looked_up(seen, owner)
        taken = [bool(router.found[text]) for router, text in rows]
        return torch.tensor(taken, dtype=torch.bool, device=seen.ids.device)

    def _looked_up(self, seen: Pass, owner: Int[Tensor, " B"]) -> list[tuple[RagRouter, Text]]:
        """Return router and prompt of each row, after all of them were looked up."""
        prompts = seen.tokens(prompt_only=True)
        for router in self.routers:
            if len(router.found) > REMEMBERED:
                router.found = {}
        mine = [self.routers[number] for number in owner.tolist()]
        rows = list(zip(mine, prompts, strict=True))
        fresh: dict[str, dict[Text, None]] = {}
        for router, text in rows:
            if text not in router.found:
                fresh.setdefault(router.use.encoder, {})[text] = None
        patches = [-1] * len(rows) if seen.patches is None else seen.patches.tolist()
        for encoder, wanted in fresh.items():
            texts = list(wanted)
            embed = next(r.embed for r in self.routers if r.use.encoder == encoder)
            # the unedited model reads, whether patches run beside its weights or in them
            with self.lm.installed.unwritten(), bare(self.lm.model):
                queries = embed([message_of(self.lm, text).text or " " for text in texts])
            query = dict(zip(texts, queries, strict=True))
            candidates = [
                (router, text, patch, router.near(query[text]))
                for (router, text), patch in zip(rows, patches, strict=True)
                if router.use.encoder == encoder and text not in router.found
            ]
            for router, text, numbers in self._confirmed(candidates):
                router.found[text] = numbers
        return rows

    def _confirmed(
        self, candidates: Sequence[tuple[RagRouter, Text, int, tuple[int, ...]]]
    ) -> list[tuple[RagRouter, Text, tuple[int, ...]]]:
        """Ask the model about every fact that is near, where a router wants it to."""
        asked: list[Row] = []
        place: dict[tuple[int, int], int] = {}
        for line, (router, text, patch, numbers) in enumerate(candidates):
            if router.use.confirm == "none" or not numbers:
                continue
            for number in (*numbers, NEUTRAL):
                told = router.memory.facts[number].text if number != NEUTRAL else UNRELATED
                place[line, number] = len(asked)
                asked.append(_question(self.lm, told, text, patch))
        said = self._agreed(asked)
        kept = []
        for line, (router, text, _, numbers) in enumerate(candidates):
            if router.use.confirm != "none" and numbers:
                limit = 0.0
                if router.use.confirm == "contrast":
                    limit = said[place[line, NEUTRAL]]
                numbers = tuple(n for n in numbers if said[place[line, n]] > limit)
            kept.append((router, text, numbers))
        return kept

    def _agreed(self, rows: Sequence[Row]) -> list[float]:
        """Return for each question by how much the model rather says yes than no, in nats."""
        lm, said = self.lm, [0.0] * len(rows)
        if not rows:
            return said
        yes, no = (_first_tokens(lm, words) for words in (YES, NO))
        with nested(lm.model):
            for batch in lm.batches(list(rows)):
                at = torch.tensor(
                    [(line, len(rows[i].ids) - 1) for line, i in enumerate(batch.index)],
                    device=lm.device,
                )
                logits = lm.logits(batch, at)
                logits = wide(logits)
                more = logits[:, yes].logsumexp(1) - logits[:, no].logsumexp(1)
                for i, own in zip(batch.index, more.tolist(), strict=True):
                    said[i] = own
        return said

    @torch.no_grad()
    def logits(
        self,
        seen: Pass,
        owner: Int[Tensor, " B"],
        at: Int[Tensor, "N 2"],
        base: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N V"]:
        """Return the model's logits at these places, behind the facts near each row."""
        lm = self.lm
        # padding may stand on either side; what stands at padding is of no interest
        place = (seen.mask.long().cumsum(1) - 1).clamp(min=0)[at[:, 0], at[:, 1]].tolist()
        patches = [-1] * len(seen.ids) if seen.patches is None else seen.patches.tolist()
        asked: list[Row] = []
        shift: list[tuple[int, int]] = []
        for (text, start, told), patch in zip(self._told(seen, owner), patches, strict=True):
            asked.append(Row((*text[:start], *told, *text[start:]), (0,), (), 1, patch=patch))
            shift.append((start, len(told)))
        wanted: dict[int, list[int]] = {}
        for line, row in enumerate(at[:, 0].tolist()):
            wanted.setdefault(row, []).append(line)
        made = base.clone()
        with nested(lm.model):
            for batch in lm.batches(asked):
                lines = [line for row in batch.index for line in wanted.get(row, [])]
                pairs = [
                    (number, place[line] + (shift[row][1] if place[line] >= shift[row][0] else 0))
                    for number, row in enumerate(batch.index)
                    for line in wanted.get(row, [])
                ]
                if not pairs:
                    continue
                new = lm.logits(batch, torch.tensor(pairs, device=lm.device))
                made[torch.tensor(lines, device=made.device)] = new.to(made.dtype)
        return made

    @torch.no_grad()
    def rewritten(self, seen: Pass, owner: Int[Tensor, " B"]) -> list[Text]:
        """Return the tokens of each row, with the facts near it told in front of its question."""
        told = self._told(seen, owner)
        return [(*text[:start], *facts, *text[start:]) for text, start, facts in told]

    def _told(self, seen: Pass, owner: Int[Tensor, " B"]) -> list[tuple[Text, int, Text]]:
        """Return each row's tokens, where facts go, and the tokens of the facts near it."""
        rows, texts = self._looked_up(seen, owner), seen.tokens()
        return [
            (text, message_of(self.lm, prompt).at, self._fitting(router, prompt, len(text)))
            for (router, prompt), text in zip(rows, texts, strict=True)
        ]

    def _fitting(self, router: RagRouter, prompt: Text, length: int) -> Text:
        """Return the tokens of the facts that are told: as many as the model has room for.

        Raises:
            ModelError: If it has room for none.
        """
        lm, numbers = self.lm, router.found[prompt]
        for count in range(len(numbers), 0, -1):
            facts = [router.memory.facts[number] for number in numbers[:count]]
            ids = _told(lm, router.use.told(facts))
            if lm.max_length is None or length + len(ids) <= lm.max_length:
                return ids
        raise ModelError(
            f"a question of {length} tokens leaves no room for the fact that it is about: "
            f"{lm.name} holds {lm.max_length}",
            "Ask something shorter.",
        )


def _told(lm: LM, text: str) -> Text:
    """Return the tokens of facts, without special tokens: their question has those."""
    ids = tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
    own = encode(lm, "a") == encode(lm, " a")  # a space in front of every text would be doubled
    return (
        ids
        if not own
        else tuple(lm.tokenizer(text.rstrip(" "), add_special_tokens=False)["input_ids"])
    )


def _question(lm: LM, fact: str, prompt: Text, patch: int) -> Row:
    """Return the row that asks whether a fact bears on a question."""
    message = message_of(lm, prompt)
    text = CONFIRM.format(fact=stopped(fact), question=message.text)
    row = lm.row(text, chat="user") if frames(lm) else lm.row(f"{text}\nAnswer:")
    return Row(row.ids, row.positions, (), row.prompt_length, patch=patch)


def _first_tokens(lm: LM, words: Sequence[str]) -> Int[Tensor, " w"]:
    found = {lm.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words}
    return torch.tensor(sorted(found), device=lm.device)


def _first(seen: Pass) -> Int[Tensor, " B"]:
    """Return the owner of rows that all belong to one router."""
    return torch.zeros(len(seen.ids), dtype=torch.long)
