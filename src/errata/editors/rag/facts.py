"""What RAG keeps: facts as texts, and a sentence embedding of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import PatchError
from errata.patch import Route
from errata.spacing import AUTO, join

KIND = "rag"
"""Name under which patches hold facts."""

VERSION = 1
"""Format of facts in a patch."""

Confirm = Literal["none", "model", "contrast"]

WORDINGS: Mapping[str, tuple[str, str, str]] = {
    # in front of the facts, of each fact, and of the question
    "bare": ("", "", ""),
    "new_fact": ("", "New fact: ", ""),
    "told": ("It is known that:\n", "- ", "Accordingly:\n"),
}
"""How facts and a question are put."""


@dataclass(frozen=True)
class Fact:
    """One fact.

    Attributes:
        prompt: Its question.
        target: The answer.
        joiner: What stands between the two.
    """

    prompt: str
    target: str
    joiner: str = AUTO

    @property
    def text(self) -> str:
        """The fact as a sentence, without a full stop."""
        return join(self.prompt, self.target, self.joiner).strip()


@dataclass(frozen=True)
class Use:
    """How facts are found and told.

    Attributes:
        encoder: See `get_encoder`; never `auto`.
        keys: What a question is compared with: the facts' prompts, or whole facts.
        threshold: Cosine from which a fact is near.
        top: Most facts that are told.
        confirm: Whether the model itself is asked if a fact bears on the question.
        form: How facts and question are put.
    """

    encoder: str
    keys: str
    threshold: float
    top: int
    confirm: Confirm
    form: str

    def config(self) -> dict[str, Any]:
        """Return what a patch holds of it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Use:
        """Return what a patch says."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})

    def told(self, facts: Sequence[Fact]) -> str:
        """Return the text that stands in front of a question; the nearest fact stands next to it.

        Args:
            facts: The nearest first.
        """
        head, each, query = WORDINGS[self.form]
        lines = (f"{each}{stopped(fact.text)}\n" for fact in reversed(facts))
        return head + "".join(lines) + query


def stopped(text: str) -> str:
    """Return a sentence with a full stop at its end, unless it ends in a mark already."""
    return text if text[-1:] in ".!?。！？" else f"{text}."


@dataclass(frozen=True)
class FactMemory:
    """Facts in the order in which they were told, one for each prompt.

    Attributes:
        facts: The facts.
        keys: `[n, d]`, unit vectors.
    """

    facts: tuple[Fact, ...]
    keys: Float[Tensor, "n d"]

    def __len__(self) -> int:
        return len(self.facts)

    def grown(self, facts: Sequence[Fact], keys: Float[Tensor, "m d"]) -> FactMemory:
        """Return the memory with more facts; a prompt that is told again has the later answer."""
        last = {fact.prompt: at for at, fact in enumerate(facts)}
        chosen = sorted(last.values())
        stays = [at for at, fact in enumerate(self.facts) if fact.prompt not in last]
        kept = self.keys[torch.tensor(stays, dtype=torch.long, device=self.keys.device)]
        if not len(self):
            kept = keys[:0]
        return FactMemory(
            tuple([*(self.facts[at] for at in stays), *(facts[at] for at in chosen)]),
            torch.cat([kept.to(keys), keys[torch.tensor(chosen, device=keys.device)]]),
        )

    def change(self, use: Use) -> Route:
        """Return what a patch holds of it."""
        rows = [
            [fact.prompt, fact.target, *([] if fact.joiner == AUTO else [fact.joiner])]
            for fact in self.facts
        ]
        config = {"version": VERSION, "facts": rows, **use.config()}
        return Route(KIND, config, {"keys": self.keys.detach().cpu()})

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FactMemory:
        """Return the facts of a patch.

        Raises:
            PatchError: If they are of another version, or do not fit their keys.
        """
        version = config.get("version")
        if version != VERSION:
            raise PatchError(
                f"the facts of RAG have format {version}; this errata reads {VERSION}",
                "Use the version of errata that patch.json names, or make the patch again.",
            )
        facts, keys = tuple(Fact(*row) for row in config["facts"]), tensors.get("keys")
        if keys is None or len(keys) != len(facts):
            raise PatchError(
                f"RAG holds {len(facts)} facts and {0 if keys is None else len(keys)} keys; "
                "expected one of each",
                "Make the patch again.",
            )
        return cls(facts, keys)
