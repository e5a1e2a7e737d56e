"""SERAC at work: a memory of edits, and the router that answers with the counterfactual model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.editors.serac.network import Asked, SeracNetwork, read_out
from errata.errors import ConfigError, ModelError, PatchError
from errata.model.passes import wide
from errata.nets.scope import Text, embed, nearest
from errata.nets.small import padded
from errata.patch.changes import Route, route_kind

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.passes import Pass

KIND = "serac"
VERSION = 1
EPS = 1e-30
"""Added to mixed probabilities before the logarithm is taken."""

REMEMBERED = 8192
"""Texts whose nearest entry a router remembers: a generation asks about a prompt at every step."""


@dataclass(frozen=True)
class ScopeMemory:
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
    def of(cls, texts: Sequence[Text], prompts: Sequence[int], keys: Tensor) -> ScopeMemory:
        """Return a memory of these texts."""
        tokens, mask = padded(texts or [(0,)], keys.device)
        n = len(texts)
        numbers = torch.tensor(list(prompts), dtype=torch.int32, device=keys.device)
        return cls(tokens[:n].int(), mask.sum(1)[:n].int(), numbers, keys)

    @classmethod
    def from_change(cls, change: Route, device: torch.device) -> ScopeMemory:
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
        _check_shapes(parts)
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

    def grown(self, texts: Sequence[Text], prompts: Sequence[int], keys: Tensor) -> ScopeMemory:
        """Return the memory with more entries; a later answer to the same prompt wins."""
        last = {text[:n]: at for at, (text, n) in enumerate(zip(texts, prompts, strict=True))}
        chosen = sorted(last.values())
        new = ScopeMemory.of([texts[i] for i in chosen], [prompts[i] for i in chosen], keys[chosen])
        gone = [self.of_prompt(texts[i][: prompts[i]]) for i in chosen]
        stays = torch.ones(len(self), dtype=torch.bool, device=self.lengths.device)
        stays[[number for number in gone if number is not None]] = False
        width = max(self.tokens.shape[1], new.tokens.shape[1])
        both = [
            nn.functional.pad(t, (0, width - t.shape[1])) for t in (self.tokens[stays], new.tokens)
        ]
        return ScopeMemory(
            torch.cat(both),
            torch.cat([self.lengths[stays], new.lengths]),
            torch.cat([self.prompts[stays], new.prompts]),
            torch.cat([self.keys[stays].to(keys), new.keys]),
        )


def _check_shapes(parts: Mapping[str, Tensor]) -> None:
    """Refuse the parts of a memory that do not belong together.

    Raises:
        PatchError: Says their shapes, or which entry is longer than its tokens.
    """
    tokens, lengths, prompts, keys = (parts[name] for name in ScopeMemory.__dataclass_fields__)
    dims = [t.ndim for t in (tokens, lengths, prompts, keys)] == [2, 1, 1, 2]
    if not dims or len({len(tokens), len(lengths), len(prompts), len(keys)}) > 1:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts.values())
        raise PatchError(
            f"this SERAC memory has shapes {shapes}; expected n x T, n, n and n x k",
            "Make the patch again.",
        )
    whole = not any(t.is_floating_point() for t in (tokens, lengths, prompts))
    if not whole or bool((lengths > tokens.shape[1]).any() or (lengths < prompts).any()):
        raise PatchError("this SERAC memory counts wrongly", "Make the patch again.")


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

    def change(self, memory: ScopeMemory) -> Route:
        """Return the change of a patch."""
        config = {"version": VERSION, **{k: getattr(self, k) for k in self.__dataclass_fields__}}
        return Route(KIND, config, memory.weights())

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Rule:
        """Return the rule of a change."""
        return cls(**{key: config[key] for key in cls.__dataclass_fields__})


# ---------------------------------------------------------------------- networks, one copy each


def _shared(lm: LM) -> dict[str, SeracNetwork]:
    return lm.once("SERAC's networks", dict)


def share(lm: LM, network: SeracNetwork, fingerprint: str) -> None:
    """Let the patches of this model use these networks, as long as the model lives."""
    _shared(lm)[fingerprint] = network


def networks_of(lm: LM, rule: Rule) -> SeracNetwork:
    """Return the networks that a patch was made with; loaded once for a model.

    Raises:
        PatchError: If they are not where the patch says, or others are.
    """
    known = _shared(lm)
    if rule.fingerprint in known:
        return known[rule.fingerprint]
    wanted = f"the networks {rule.fingerprint[:12]} of this SERAC patch"
    if rule.networks is None:
        raise PatchError(
            f"{wanted} were never saved, and are gone with the process that made it",
            "Train and name networks (errata train serac … --out DIR), then edit with "
            "--set weights=DIR.",
        )
    from errata.editors import get_editor  # by name: the editor imports this module

    try:
        editor = get_editor("serac", {"weights": rule.networks})
        editor.prepare(lm)
    except (ConfigError, ModelError) as error:
        raise PatchError(
            f"{wanted} cannot be loaded: {error.message}",
            f"Put its counterfactual model back to {rule.networks}, or edit again with networks "
            "that are there: --set weights=DIR.",
        ) from None
    if rule.fingerprint not in known:
        raise PatchError(
            f"{wanted} are not those in {rule.networks}: they were trained anew since",
            "Edit again, or put the earlier networks back.",
        )
    return known[rule.fingerprint]


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
        self.memory = ScopeMemory.from_change(Route(KIND, config, tensors), lm.device)
        self.rule = Rule.of(config)
        self.network = networks_of(lm, self.rule) if len(self.memory) else None
        self.found: dict[Text, tuple[float, int]] = {}

    def texts(self, seen: Pass) -> list[Text]:
        """Return what the router looks at of each row."""
        return seen.tokens(prompt_only=self.rule.route_on == "prompt")

    def look_up(self, texts: Sequence[Text], keys: Float[Tensor, "n k"]) -> None:
        """Find the nearest entries of texts and remember them."""
        sims, numbers = nearest(keys, self.memory.keys.to(keys))
        pairs = zip(sims.tolist(), numbers.tolist(), strict=True)
        self.found.update(zip(texts, pairs, strict=True))

    def takes(self, text: Text) -> bool:
        """Whether a text is answered that was looked up before."""
        return self.rule.switch == "soft" or self.found[text][0] >= self.rule.threshold

    @staticmethod
    def together(routers: Sequence[SeracRouter]) -> SeracRouters:
        """Return what serves the routers of many patches at once."""
        return SeracRouters(routers)

    def scope(self, seen: Pass) -> Bool[Tensor, " B"]:
        """Return which rows are answered: all with a soft switch, else those near an entry."""
        return SeracRouters([self]).scope(seen, _first(seen))

    def logits(
        self, seen: Pass, at: Int[Tensor, "N 2"], base: Float[Tensor, "N V"]
    ) -> Float[Tensor, "N V"]:
        """Return the counterfactual model's logits at these places, mixed in if the switch is soft.

        Args:
            seen: The rows that are answered.
            at: Row and column.
            base: The base model's logits there.
        """
        return SeracRouters([self]).logits(seen, _first(seen), at, base)


class SeracRouters:
    """Routers of several patches: questions are encoded and answered together.

    Args:
        routers: One per patch.
    """

    def __init__(self, routers: Sequence[SeracRouter]) -> None:
        self.routers = list(routers)

    @torch.no_grad()
    def scope(self, seen: Pass, owner: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Return which rows are answered; `owner` is the number of each row's router."""
        rows = self._looked_up(seen, owner)
        taken = [router.network is not None and router.takes(text) for router, text in rows]
        return torch.tensor(taken, dtype=torch.bool, device=seen.ids.device)

    def _looked_up(self, seen: Pass, owner: Int[Tensor, " B"]) -> list[tuple[SeracRouter, Text]]:
        """Return router and text of each row, after all of them were looked up."""
        mine = [self.routers[number] for number in owner.tolist()]
        for router in self.routers:
            if len(router.found) > REMEMBERED:
                router.found = {}
        shown = {rule: router.texts(seen) for router in mine for rule in [router.rule.route_on]}
        rows = [(r, shown[r.rule.route_on][at]) for at, r in enumerate(mine)]
        fresh: dict[SeracNetwork, dict[SeracRouter, set[Text]]] = {}
        for router, text in rows:
            if router.network is not None and text not in router.found:
                fresh.setdefault(router.network, {}).setdefault(router, set()).add(text)
        for network, wanted in fresh.items():
            texts = sorted(set().union(*wanted.values()))
            keys = embed(self.routers[0].lm, network.encoder, texts)
            place = {text: at for at, text in enumerate(texts)}
            for router in wanted:
                own = sorted(wanted[router])
                router.look_up(own, keys[[place[text] for text in own]])
        return rows

    @torch.no_grad()
    def logits(
        self,
        seen: Pass,
        owner: Int[Tensor, " B"],
        at: Int[Tensor, "N 2"],
        base: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N V"]:
        """Return the counterfactual models' logits at these places of rows in scope."""
        rows, texts = self._looked_up(seen, owner), seen.tokens()
        # padding may stand on either side; what stands at padding is of no interest
        place = (seen.mask.long().cumsum(1) - 1).clamp(min=0)[at[:, 0], at[:, 1]].tolist()
        lines: dict[SeracNetwork, dict[int, list[int]]] = {}
        for line, row in enumerate(at[:, 0].tolist()):
            network = rows[row][0].network
            assert network is not None  # the row is in scope
            lines.setdefault(network, {}).setdefault(row, []).append(line)
        made = base
        for network, by_row in lines.items():
            asked = []
            for row, own in by_row.items():
                router, text = rows[row]
                edit = router.memory.text(router.found[text][1])
                asked.append(Asked(edit, texts[row], tuple(place[line] for line in own)))
            lm = self.routers[0].lm
            new = read_out(lm, network.counterfactual(lm, asked))
            order = torch.tensor([line for own in by_row.values() for line in own])
            made = made.index_copy(0, order.to(made.device), new.to(made.dtype))
        return self._switched(rows, at, base, made)

    def _switched(
        self,
        rows: Sequence[tuple[SeracRouter, Text]],
        at: Int[Tensor, "N 2"],
        base: Float[Tensor, "N V"],
        made: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N V"]:
        """Mix where the switch is soft."""
        soft = torch.tensor([router.rule.switch == "soft" for router, _ in rows])
        if not bool(soft.any()):
            return made
        over = [router.found[text][0] - router.rule.threshold for router, text in rows]
        row = at[:, 0]
        share = torch.tensor(over, device=base.device)[row].sigmoid()
        return torch.where(soft.to(base.device)[row][:, None], mixed(base, made, share), made)


def _first(seen: Pass) -> Int[Tensor, " B"]:
    """Return the owner of rows that all belong to one router."""
    return torch.zeros(len(seen.ids), dtype=torch.long)


def mixed(
    base: Float[Tensor, "N V"], other: Float[Tensor, "N V"], share: Float[Tensor, " N"]
) -> Float[Tensor, "N V"]:
    """Return `log((1 - s) p + s q + eps)`: the published soft switch, never exact."""
    p, q = wide(base).softmax(-1), wide(other).softmax(-1)
    s = share.to(p.dtype)[:, None]
    return ((1 - s) * p + s * q + EPS).log()
