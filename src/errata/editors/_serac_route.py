"""SERAC at work: a memory of edits, and the router that answers with the counterfactual model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.changes import Route, route_kind
from errata.editors._serac_network import Asked, SeracNetwork, read_out
from errata.errors import ConfigError, ModelError, PatchError
from errata.nets.scope import Text, embed, nearest
from errata.nets.small import padded

if TYPE_CHECKING:
    from errata.forward import Pass
    from errata.lm import LM

KIND = "serac"
VERSION = 1
EPS = 1e-30
"""Added to mixed probabilities before the logarithm is taken."""

REMEMBERED = 8192
"""Texts whose nearest entry a router remembers: a generation asks about a prompt at every step."""


@dataclass(frozen=True)
class Memory:
    """The edits, one entry each.

    Attributes:
        tokens: `[n, T]`, prompt and target, padded with zeros.
        lengths: `[n]`, number of their tokens.
        prompts: `[n]`, number of those that are the prompt's.
        keys: `[n, k]`, what the router compares with.
    """

    tokens: Int[Tensor, "n T"]
    lengths: Int[Tensor, " n"]
    prompts: Int[Tensor, " n"]
    keys: Float[Tensor, "n k"]

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, texts: Sequence[Text], prompts: Sequence[int], keys: Tensor) -> Memory:
        """Return a memory of these texts."""
        tokens, mask = padded(texts or [(0,)], keys.device)
        n = len(texts)
        numbers = torch.tensor(list(prompts), dtype=torch.int32, device=keys.device)
        return cls(tokens[:n].int(), mask.sum(1)[:n].int(), numbers, keys)

    @classmethod
    def from_change(cls, change: Route, device: torch.device) -> Memory:
        """Return the memory that a patch holds.

        Raises:
            PatchError: If another version of errata wrote it, or something is missing.
        """
        version = change.config.get("version")
        if version != VERSION:
            raise PatchError(
                f"this SERAC memory has version {version}; this errata reads version {VERSION}",
                "Make the patch again from its edits, or install the errata that made it.",
            )
        try:
            parts = {name: change.weights[name].to(device) for name in cls.__dataclass_fields__}
        except KeyError as error:
            raise PatchError(f"this SERAC memory has no {error}", "Make the patch again.") from None
        return cls(**parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.weights().values())

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def text(self, number: int) -> Text:
        """Return the tokens of an entry."""
        return tuple(self.tokens[number, : int(self.lengths[number])].tolist())

    def of_prompt(self, prompt: Text) -> int | None:
        """Return the number of the entry with this very prompt, if there is one."""
        n = len(prompt)
        if not len(self) or n > self.tokens.shape[1]:
            return None
        wanted = torch.tensor(prompt, dtype=self.tokens.dtype, device=self.tokens.device)
        same = (self.prompts == n) & (self.tokens[:, :n] == wanted).all(1)
        found = same.nonzero()[:1, 0].tolist()
        return found[0] if found else None

    def grown(self, texts: Sequence[Text], prompts: Sequence[int], keys: Tensor) -> Memory:
        """Return the memory with more entries; a later answer to the same prompt wins."""
        last = {text[:n]: at for at, (text, n) in enumerate(zip(texts, prompts, strict=True))}
        chosen = sorted(last.values())
        new = Memory.of([texts[i] for i in chosen], [prompts[i] for i in chosen], keys[chosen])
        gone = [self.of_prompt(texts[i][: prompts[i]]) for i in chosen]
        stays = torch.ones(len(self), dtype=torch.bool, device=self.lengths.device)
        stays[[number for number in gone if number is not None]] = False
        width = max(self.tokens.shape[1], new.tokens.shape[1])
        both = [
            nn.functional.pad(t, (0, width - t.shape[1])) for t in (self.tokens[stays], new.tokens)
        ]
        return Memory(
            torch.cat(both),
            torch.cat([self.lengths[stays], new.lengths]),
            torch.cat([self.prompts[stays], new.prompts]),
            torch.cat([self.keys[stays].to(keys), new.keys]),
        )


@dataclass(frozen=True)
class Rule:
    """How a router decides, and with which networks.

    Attributes:
        networks: Where they are: a folder, a Hub id or `pocket`; None: only in the process that
            trained them.
        fingerprint: Of their weights.
        threshold: Similarity from which an edit answers.
        route_on: `prompt`, or `target_leak`.
        switch: `hard`, or `soft`.
    """

    networks: str | None
    fingerprint: str
    threshold: float
    route_on: str
    switch: str

    def change(self, memory: Memory) -> Route:
        """Return the change of a patch."""
        config = {"version": VERSION, **{k: getattr(self, k) for k in self.__dataclass_fields__}}
        return Route(KIND, config, memory.weights())

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Rule:
        """Return the rule of a change."""
        return cls(**{key: config[key] for key in cls.__dataclass_fields__})


# ---------------------------------------------------------------------- networks, one copy each

_known: WeakKeyDictionary[Any, dict[str, SeracNetwork]] = WeakKeyDictionary()


def share(lm: LM, network: SeracNetwork, fingerprint: str) -> None:
    """Let the patches of this model use these networks, as long as the model lives."""
    _known.setdefault(lm.model, {})[fingerprint] = network


def networks_of(lm: LM, rule: Rule) -> SeracNetwork:
    """Return the networks that a patch was made with; loaded once for a model.

    Raises:
        PatchError: If they are not where the patch says, or others are.
    """
    known = _known.get(lm.model, {})
    if rule.fingerprint in known:
        return known[rule.fingerprint]
    wanted = f"the networks {rule.fingerprint[:12]} of this SERAC patch"
    if rule.networks is None:
        raise PatchError(
            f"{wanted} were never saved, and are gone with the process that made it",
            "Train and name networks (errata train serac … --out DIR), then edit with "
            "--set weights=DIR.",
        )
    from errata.editors.serac import Serac, SeracConfig

    try:
        editor = Serac(SeracConfig(weights=rule.networks))
        editor.prepare(lm)
    except (ConfigError, ModelError) as error:
        raise PatchError(
            f"{wanted} cannot be loaded: {error.message}",
            f"Put its counterfactual model back to {rule.networks}, or edit again with networks "
            "that are there: --set weights=DIR.",
        ) from None
    if rule.fingerprint not in _known[lm.model]:
        raise PatchError(
            f"{wanted} are not those in {rule.networks}: they were trained anew since",
            "Edit again, or put the earlier networks back.",
        )
    return _known[lm.model][rule.fingerprint]


# ---------------------------------------------------------------------- the router


@route_kind(KIND)
class SeracRouter:
    """Answers questions near an entry of the memory, and leaves all others to the model.

    Args:
        lm: The base model.
        config: What `Rule.change` wrote.
        tensors: The memory.

    Raises:
        PatchError: If the networks are missing, or another version wrote the memory.
    """

    def __init__(self, lm: LM, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.lm = lm
        self.memory = Memory.from_change(Route(KIND, config, tensors), lm.device)
        self.rule = Rule.of(config)
        self.network = networks_of(lm, self.rule) if len(self.memory) else None
        self._found: dict[Text, tuple[float, int]] = {}

    def _nearest(self, seen: Pass) -> list[tuple[float, int]]:
        """Return similarity and number of the nearest entry of each row."""
        assert self.network is not None
        texts = seen.tokens(prompt_only=self.rule.route_on == "prompt")
        fresh = sorted({text for text in texts if text not in self._found})
        if len(self._found) + len(fresh) > REMEMBERED:
            self._found, fresh = {}, sorted(set(texts))
        if fresh:
            keys = embed(self.lm, self.network.encoder, fresh)
            sims, numbers = nearest(keys, self.memory.keys.to(keys))
            pairs = zip(sims.tolist(), numbers.tolist(), strict=True)
            self._found.update(zip(fresh, pairs, strict=True))
        return [self._found[text] for text in texts]

    @torch.no_grad()
    def scope(self, seen: Pass) -> Bool[Tensor, " B"]:
        """Return which rows are answered: all with a soft switch, else those near an entry."""
        count = len(seen.ids)
        if self.network is None:
            return torch.zeros(count, dtype=torch.bool, device=self.lm.device)
        if self.rule.switch == "soft":
            return torch.ones(count, dtype=torch.bool, device=self.lm.device)
        near = [sim >= self.rule.threshold for sim, _ in self._nearest(seen)]
        return torch.tensor(near, device=self.lm.device)

    @torch.no_grad()
    def logits(
        self, seen: Pass, at: Int[Tensor, "N 2"], base: Float[Tensor, "N V"]
    ) -> Float[Tensor, "N V"]:
        """Return the counterfactual model's logits at these places, mixed in if the switch is soft.

        Args:
            seen: The rows that are answered.
            at: Row and column.
            base: The base model's logits there.
        """
        assert self.network is not None
        found, texts = self._nearest(seen), seen.tokens()
        # padding may stand on either side; what stands at padding is of no interest
        place = (seen.mask.long().cumsum(1) - 1).clamp(min=0)[at[:, 0], at[:, 1]].tolist()
        wanted: list[list[int]] = [[] for _ in texts]
        line = []
        for row, p in zip(at[:, 0].tolist(), place, strict=True):
            line.append((row, len(wanted[row])))
            wanted[row].append(p)
        asked = [
            Asked(self.memory.text(number), text, tuple(positions))
            for (_, number), text, positions in zip(found, texts, wanted, strict=True)
        ]
        starts = torch.tensor([0, *map(len, wanted)]).cumsum(0).tolist()
        order = torch.tensor([starts[row] + n for row, n in line], device=base.device)
        made = read_out(self.lm, self.network.counterfactual(self.lm, asked))[order]
        if self.rule.switch == "hard":
            return made
        near = torch.tensor([sim for sim, _ in found], device=base.device)[at[:, 0]]
        return mixed(base, made, (near - self.rule.threshold).sigmoid())


def mixed(
    base: Float[Tensor, "N V"], other: Float[Tensor, "N V"], share: Float[Tensor, " N"]
) -> Float[Tensor, "N V"]:
    """Return `log((1 - s) p + s q + eps)`: the published soft switch, never exact."""
    wide = torch.promote_types(base.dtype, torch.float32)
    p, q = base.to(wide).softmax(-1), other.to(wide).softmax(-1)
    s = share.to(wide)[:, None]
    return ((1 - s) * p + s * q + EPS).log()
