"""What IKE shows the model before an edit: demonstrations, drawn or retrieved, and a wording."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from errata.case import Case, ProbeKind
from errata.model.tokens import encode_row
from errata.spacing import AUTO, join
from errata.store.digest import digest_of_all
from errata.world.shipped import knows_world

if TYPE_CHECKING:
    from errata.editors.ike.encoder import Embed
    from errata.model.lm import LM

Kind = Literal["copy", "generalise", "locality"]
KINDS: tuple[Kind, ...] = ("copy", "generalise", "locality")
ASKED: dict[Kind, ProbeKind] = {"generalise": "generality", "locality": "locality"}


@dataclass(frozen=True)
class Form:
    """How facts are stated and a question is put.

    Attributes:
        head: Opens a block.
        fact: Stands in front of each fact.
        query: Between the facts and the question.
    """

    head: str
    fact: str
    query: str

    def state(self, facts: Sequence[str]) -> str:
        """Return the text that states facts and asks for an answer."""
        return self.head + "".join(f"{self.fact}{fact}\n" for fact in facts) + self.query

    def show(self, demo: Demo) -> str:
        """Return one demonstration: its facts, and a question with its answer."""
        return f"{self.state(demo.facts)}{join(demo.prompt, demo.answer, demo.joiner)}\n\n"


FORMS: Mapping[str, Form] = {
    "uniedit": Form("<New Facts>:\n", "", "<Query Answer>:\n"),
    "easyedit": Form("", "New Fact: ", "Prompt: "),
    "bare": Form("", "", ""),
}


@dataclass(frozen=True)
class Demo:
    """A question that some facts answer, or that they leave alone.

    Attributes:
        facts: What is stated.
        prompt: The question.
        answer: What has to follow.
        joiner: What stands between the two.
    """

    facts: tuple[str, ...]
    prompt: str
    answer: str
    joiner: str = AUTO


def read_cases(lm: LM, source: str, limit: int | None, seed: int) -> Sequence[Case]:
    """Draw the cases that demonstrations are made of.

    Args:
        lm: The model, for `auto`.
        source: `auto` (the pocket model's own world, else UniEdit), or a data set as `load_cases`
            takes it. Where it has a training split, that is read.
        limit: Number of cases; None: all.
        seed: Which cases, and their order.

    Raises:
        ConfigError: If there is no such data set.
        DataError: If it cannot be read.
    """
    from errata.data import datasets, load_cases, resolve, split_part

    spec = ("world" if knows_world(lm.name) else "uniedit") if source == "auto" else source
    splits = datasets.load(resolve(split_part(spec)[0])[0]).splits
    return load_cases(spec, "train" if "train" in splits else None, limit, seed).cases


def demo_of(case: Case, kind: Kind) -> Demo:
    """Make a demonstration of a case; `copy` where it has no question of the kind."""
    edit = case.edits[0]
    facts = [join(edit.prompt, edit.target, edit.joiner)]
    if kind == "copy" or not case.of(ASKED[kind]):
        return Demo(tuple(facts), edit.prompt, edit.target, edit.joiner)
    probe = case.of(ASKED[kind])[0]
    if kind == "generalise":
        facts += [join(hop.prompt, hop.target, hop.joiner) for hop in probe.hops]
    return Demo(tuple(facts), probe.prompt, probe.target, probe.joiner)


def drawn(lm: LM, cases: Sequence[Case], seed: int) -> list[Demo]:
    """Make one demonstration of each case, the three kinds taking turns in triples of random order.

    Where nothing is to change, the model's own answer is shown, as long as the data set's.
    """
    rng = random.Random(seed)
    kinds: list[Kind] = []
    while len(kinds) < len(cases):
        triple = list(KINDS)
        rng.shuffle(triple)
        kinds += triple
    demos = [demo_of(case, kind) for case, kind in zip(cases, kinds, strict=False)]
    kept = [
        i
        for i, (case, kind) in enumerate(zip(cases, kinds, strict=False))
        if kind == "locality" and case.of("locality")
    ]
    rows = [lm.row(d.prompt, d.answer, joiner=d.joiner) for d in (demos[i] for i in kept)]
    asked = [lm.row(demos[i].prompt, joiner=demos[i].joiner) for i in kept]
    answers = lm.generate(asked, [len(row.labels) for row in rows])
    for i, answer in zip(kept, answers, strict=True):
        if answer.strip():  # the model may have ended its text at once
            demos[i] = replace(demos[i], answer=answer)
    return demos


@dataclass
class Demos:
    """Demonstrations of one model and one set of settings.

    Attributes:
        blocks: Their texts; in the order they are shown, unless they are retrieved.
        embed: Turns texts into unit vectors; None where nothing is retrieved.
        vectors: Those of the blocks.
    """

    blocks: Sequence[str]
    embed: Embed | None = None
    vectors: Float[Tensor, "n d"] | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over the texts."""
        return digest_of_all(self.blocks)

    def near(self, queries: Sequence[str], count: int) -> list[str]:
        """Return the blocks to show, best first: the nearest to any of the queries.

        Args:
            queries: Facts and questions of the edits, worded as the blocks are.
            count: Most blocks.
        """
        if self.embed is None or self.vectors is None or not self.blocks:
            return list(self.blocks[:count])
        likeness = (self.embed(queries) @ self.vectors.T).amax(0)
        order = torch.sort(likeness, descending=True, stable=True).indices[:count]
        return [self.blocks[int(i)] for i in order]

    def size(self, lm: LM, text: str) -> int:
        """Return the number of tokens of a block."""
        if text not in self.sizes:
            self.sizes[text] = len(encode(lm, text))
        return self.sizes[text]


def encode(lm: LM, text: str) -> tuple[int, ...]:
    """Return the tokens of a text, however many they are."""
    return encode_row(lm.tokenizer, text, joiner="").ids  # a space at its end stays


def make_demos(
    lm: LM,
    form: Form,
    *,
    source: str,
    retrieve: str,
    count: int,
    pool: int | None,
    encoder: str,
    seed: int,
) -> Demos:
    """Draw demonstrations, or embed all of a pool from which they are retrieved.

    Args:
        lm: The unedited model.
        form: How facts are stated.
        source: See `read_cases`.
        retrieve: `random` or `knn`.
        count: Demonstrations that are shown; 0: no data is read.
        pool: Cases that are embedded (`knn`).
        encoder: See `get_encoder`.
        seed: Which cases, in which order.
    """
    if not count:
        return Demos(())
    if retrieve == "random":
        demos = drawn(lm, read_cases(lm, source, count, seed), seed)
        return Demos([form.show(demo) for demo in demos])
    from errata.editors.ike.encoder import get_encoder

    cases = read_cases(lm, source, pool, seed)
    # all three of each case, answers as the data set has them: thousands to generate else
    blocks = dict.fromkeys(form.show(demo_of(case, kind)) for case in cases for kind in KINDS)
    embed = get_encoder(lm, encoder)
    return Demos(list(blocks), embed, embed(list(blocks)))
