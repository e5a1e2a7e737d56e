"""Changes of a whole model at work: contexts in front of every row, routes around the model.

They hook the model itself, so they act on every way to call it: through
[`LM`][errata.model.lm.LM], by `model(...)` and by `model.generate(...)`.

```
 input_ids [B, T], attention_mask [B, S], position_ids [B, T], maybe a cache
      │ _before
      │   _pass      what networks and routers may see of the rows: Pass (ids, mask, prompts, at)
      │   _insert    contexts: keys and values of every group's context, computed once (Prefix),
      │              are put in front; mask [B, P + S], positions shifted by the context's length
      ▼
    model            every row continues behind its own context; rows of -1 attend to none
      │ _after
      │   a cache that nobody asked for is taken back
      │   _Team      routers of one class side by side: scope → which rows, logits → what they say
      ▼
 logits [B, T, V], or [1, N, V] where only some places are asked for; other rows keep their bits
```

Which patch a row runs under is known on the host (`rows`), so nothing here waits for the device to
tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.errors import ModelError, PatchError
from errata.model.compat import take_cache, without_cache
from errata.model.hooks import after, before, hooked
from errata.model.passes import Pass, Prefix, make_prefix
from errata.model.tokens import Row, bucket
from errata.patch.changes import Context, Router
from errata.patch.changes.base import fitting

if TYPE_CHECKING:
    from errata.model.lm import LM


WORTH = 16
"""Tokens that several contexts have to begin with alike to be computed once."""


def sees_pass(network: nn.Module) -> bool:
    """Whether a network wants to know of the forward pass it is called in."""
    return bool(getattr(network, "sees_pass", False))


def follows_cache(network: nn.Module) -> bool:
    """Whether a network that sees the pass knows what to do behind cached tokens."""
    return bool(getattr(network, "follows_cache", False))


class AroundModel:
    """What some patches do to a model as a whole.

    Args:
        lm: The model.
        contexts: Per group, its contexts in order.
        routers: Groups and their routers; of a group's the last one that takes a row answers.
        networks: Networks behind modules; some want to see the forward pass.
        rows: Returns the group of each row of a forward pass of so many rows; -1: none. Groups are
            the numbers of patches in the stack; in place there is one, 0.
        bare: Whether contexts are all that any group has: what they begin with is then computed
            once for all of them.

    Attributes:
        seen: The forward pass that runs.
    """

    def __init__(
        self,
        lm: LM,
        contexts: Mapping[int, Sequence[Context]],
        routers: Sequence[tuple[int, Router]],
        networks: Iterable[nn.Module],
        rows: Callable[[int], Sequence[int]],
        bare: bool = False,
    ) -> None:
        self.lm, self._rows, self._bare = lm, rows, bare
        watching = [network for network in networks if sees_pass(network)]
        self.watched = bool(watching)
        self._follows = not routers and all(map(follows_cache, watching))
        self._routes = _teams(routers)
        self.ids = {
            group: tuple(n for context in several for n in context.ids.tolist())
            for group, several in contexts.items()
        }
        self._prefix: Prefix | None = None
        self._hidden = False  # whether the cache of the pass that runs is not handed out
        self.seen: Pass | None = None
        self._stacked = False
        limit = lm.max_length
        for ids in self.ids.values():
            if limit is not None and len(ids) >= limit:
                raise PatchError(
                    f"the contexts hold {len(ids)} tokens; {lm.name} has {limit} positions",
                    "Edit fewer facts at once, or give fewer demonstrations.",
                )
        if self.ids and not lm.prefix_cache_is_exact:
            raise PatchError(
                f"{lm.name} does not continue exactly behind cached keys and values",
                "A context cannot be applied to it; edit with a method that changes weights.",
            )

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.ids or self._routes or self.watched)

    @contextmanager
    def installed(self, *, stacked: bool = False) -> Iterator[None]:
        """Hook the model, once all other changes are in place; contexts are computed under them.

        Args:
            stacked: Whether the groups are patches of the active stack.
        """
        if not self.is_needed:
            yield
            return
        model, around_model = self.lm.model, self.lm.installed.around_model
        if self.ids and any(whole.ids for whole in around_model):
            raise PatchError(
                "another context is in front of every row already",
                "Add the patches and apply their sum: first + second.",
            )
        with ExitStack() as context:
            context.callback(self._left)
            around_model.append(self)
            self._stacked = stacked
            context.enter_context(
                hooked(
                    self.lm,
                    before(model, self._before, with_kwargs=True),
                    after(model, self._after, with_kwargs=True),
                    lasting=True,
                )
            )
            # the hooks are there already, and let rows through while there is no prefix
            self._prefix = self._computed(stacked) if self.ids else None
            yield

    def _left(self) -> None:
        around_model = self.lm.installed.around_model
        around_model[:] = [whole for whole in around_model if whole is not self]
        self._prefix = self.seen = None

    def _computed(self, stacked: bool) -> Prefix:
        """Return keys and values of every group's context, in the order of the groups."""
        rows = [
            Row(ids, (len(ids) - 1,), (), len(ids), patch=group if stacked else -1)
            for group, ids in self.ids.items()
        ]
        parts: list[Prefix] = []
        common = _common(list(self.ids.values())) if self._bare else 0
        shared = None
        if common >= WORTH:
            shared = make_prefix(self.lm, rows[:1], [common])
        tails = [Row(row.ids[common if shared else 0 :], (0,), (), 1) for row in rows]
        for index in bucket(tails, self.lm.max_tokens, range(len(rows))):
            part = [rows[i] for i in index]
            starts = [len(row.ids) for row in part]
            parts.append(make_prefix(self.lm, part, starts, shared=shared))
        return Prefix.joined(parts)

    # ------------------------------------------------------------------ in front of the model

    def _before(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        inputs = {**dict(zip(self.lm.arguments, args, strict=False)), **kwargs}
        past = take_cache(inputs)
        behind = 0
        if past is not None:
            inputs[self.lm.cache_name] = past
            behind = int(past.get_seq_length())
        if self.watched or self._routes:
            self.seen = self._pass(inputs, behind)
        if self._prefix is not None:
            self._insert(self._prefix, inputs, behind)
        return (), inputs

    def _pass(self, inputs: Mapping[str, Any], behind: int) -> Pass:
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if ids is None or (behind and not self._follows):
            raise PatchError(
                "this patch has to see the tokens of whole rows, and was given "
                + ("embeddings" if ids is None else f"what follows {behind} cached tokens"),
                "Generate with use_cache=False, or with LM.generate.",
            )
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        real = real[:, -ids.shape[1] :]  # a mask counts cached tokens too
        batch, at = self.lm.installed.batch, self.lm.installed.at
        prompts = real.sum(1)
        # the tensor itself says whether the LM runs its batch, or somebody else calls the model
        if batch is not None and batch.input_ids is ids and batch.prompts:
            prompts = torch.tensor(batch.prompts, device=ids.device)
        patches = self._rows(len(ids)) if self._stacked else (-1,) * len(ids)
        return Pass(ids, real, prompts, at, torch.tensor(patches, device=ids.device))

    def _insert(self, prefix: Prefix, inputs: dict[str, Any], behind: int) -> None:
        """Let every row continue behind its group's context."""
        tokens = inputs.get("input_ids")
        tokens = inputs["inputs_embeds"] if tokens is None else tokens
        count, length = tokens.shape[:2]
        number = {group: line for line, group in enumerate(self.ids)}
        lines = torch.tensor(
            [number.get(group, -1) for group in self._rows(count)], device=tokens.device
        )
        # rows without a context borrow the first one, and a mask that hides it
        context = prefix.rows(lines.clamp(min=0))
        has = lines >= 0
        visible = context.mask * has[:, None]
        width = visible.shape[1]
        mask = inputs.get("attention_mask")
        if mask is None:
            mask = visible.new_ones(count, max(behind - width, 0) + length)
        starts = torch.tensor(context.starts, device=tokens.device) * has
        limit = self.lm.max_length
        if limit is not None and width + mask.shape[1] > limit:
            longest = int((starts + mask.sum(1)).max())
            if longest > limit:
                raise ModelError(
                    f"context and input need {longest} tokens; {self.lm.name} holds {limit}",
                    "Edit fewer facts at once, or give fewer demonstrations.",
                )
        if self.lm.takes_positions:
            positions = inputs.get("position_ids")
            if positions is None:
                positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -length:]
            positions = positions + starts[:, None]
            if limit is not None:
                positions = positions.clamp(max=limit - 1)  # padding may run past a learned table
            inputs["position_ids"] = positions
        inputs["attention_mask"] = torch.cat([visible.to(mask), mask], 1)
        if inputs.get("cache_position") is not None:
            # generate counts its own tokens; the cache holds the context as well
            start = behind or width
            inputs["cache_position"] = torch.arange(start, start + length, device=tokens.device)
        wanted = inputs.get("use_cache")
        if wanted is None:
            wanted = getattr(self.lm.model.config, "use_cache", True)
        # a cache that nobody asked for would be taken for one that holds the row
        self._hidden = not behind and not wanted
        if not behind:
            self._check_window(width, mask)
            inputs.update(self.lm.behind(context.cache()))

    def _check_window(self, width: int, mask: Int[Tensor, "B T"]) -> None:
        """Refuse padding between a context and a row where attention counts columns.

        Raises:
            PatchError: If the model has a sliding window that the padding would shift.
        """
        window = getattr(self.lm.model.config.get_text_config(), "sliding_window", None)
        if window and width + mask.shape[1] > window and not bool(mask[:, 0].all()):
            raise PatchError(
                f"rows padded on the left do not stand next to their context, and {self.lm.name} "
                f"attends to windows of {window} tokens",
                "Pad on the right, give rows of one length, or use LM.generate.",
            )

    # ------------------------------------------------------------------ behind the model

    def _after(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        seen, bare = self.seen, isinstance(output, tuple)
        if self._hidden:
            output = without_cache(output)
        if not self._routes or seen is None or self.lm.installed.nested:
            return output
        logits = output[0] if bare else output.logits
        rows = self._rows(len(seen.ids))
        with fitting("the route of this patch"):
            for team in self._routes:
                lines, owner = team.members_of(rows, seen.ids.device)
                if len(lines):
                    inside = team.scope(seen.rows(lines), owner)
                    lines, owner = lines[inside], owner[inside]
                if len(lines):
                    logits = _answered(team, owner, seen, lines, logits)
        if bare:
            return (logits, *output[1:])
        output.logits = logits
        return output


def _common(rows: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens several rows begin with alike; each goes on for one at least."""
    if len(rows) < 2:
        return 0
    low, high = min(rows), max(rows)
    alike = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return min(alike, *(len(row) - 1 for row in rows))


class _Team:
    """Routers of one class, at most one per group.

    Args:
        members: Groups and their routers.
    """

    def __init__(self, members: Sequence[tuple[int, Router]]) -> None:
        self.groups = [group for group, _ in members]
        self.members = [router for _, router in members]
        join = getattr(type(self.members[0]), "together", None)
        self._joint: Any = join(self.members) if join is not None and len(members) > 1 else None

    def members_of(
        self, rows: Sequence[int], device: torch.device
    ) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
        """Return the rows that have a router here, and the number of each one's router."""
        number = {group: at for at, group in enumerate(self.groups)}
        pairs = [(row, number[group]) for row, group in enumerate(rows) if group in number]
        pairs = torch.tensor(pairs, dtype=torch.long, device=device).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def scope(self, seen: Pass, owner: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Return which of these rows are answered."""
        if self._joint is not None:
            return self._joint.scope(seen, owner)
        taken = torch.zeros(len(owner), dtype=torch.bool, device=owner.device)
        for number in owner.unique().tolist():
            rows = (owner == number).nonzero()[:, 0]
            taken[rows] = self.members[number].scope(seen.rows(rows)).to(taken.device)
        return taken

    def logits(
        self,
        seen: Pass,
        owner: Int[Tensor, " B"],
        at: Int[Tensor, "N 2"],
        base: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N V"]:
        """Return what stands for the model's logits at these places of these rows."""
        if self._joint is not None:
            return self._joint.logits(seen, owner, at, base)
        made = base
        for number in owner.unique().tolist():
            rows = (owner == number).nonzero()[:, 0]
            lines = torch.isin(at[:, 0], rows).nonzero()[:, 0]
            row, column = at[lines].unbind(1)
            # the router sees its own rows only, so they are counted anew
            places = torch.stack([torch.searchsorted(rows, row.contiguous()), column], 1)
            new = self.members[number].logits(seen.rows(rows), places, base[lines])
            made = made.index_copy(0, lines, new.to(made.dtype))
        return made


def _teams(routers: Sequence[tuple[int, Router]]) -> list[_Team]:
    """Gather routers that can work side by side: of one class, in the same place of their group."""
    place: dict[int, int] = {}
    teams: dict[tuple[int, type], list[tuple[int, Router]]] = {}
    for group, router in routers:
        at = place[group] = place.get(group, -1) + 1
        teams.setdefault((at, type(router)), []).append((group, router))
    return [_Team(teams[key]) for key in sorted(teams, key=lambda key: key[0])]


def _answered(
    team: _Team,
    owner: Int[Tensor, " m"],
    seen: Pass,
    rows: Int[Tensor, " m"],
    logits: Float[Tensor, "B T V"],
) -> Float[Tensor, "B T V"]:
    """Put routers' logits in the place of the model's; other rows keep their bits."""
    part = seen.rows(rows)
    if seen.at is not None and part.at is not None:  # logits are [1, N, V]
        in_scope: Bool[Tensor, " N"] = torch.isin(seen.at[:, 0], rows)
        lines = in_scope.nonzero()[:, 0]
        new = team.logits(part, owner, part.at, logits[0, lines])
        return logits[0].index_copy(0, lines, new.to(logits.dtype))[None]
    length, width = seen.ids.shape[1], logits.shape[1]
    columns = torch.arange(length - width, length, device=rows.device)
    numbers = torch.arange(len(rows), device=rows.device)
    at = torch.stack([numbers.repeat_interleave(width), columns.repeat(len(rows))], 1)
    new = team.logits(part, owner, at, logits[rows].flatten(0, 1))
    return logits.index_copy(0, rows, new.to(logits.dtype).view(len(rows), width, -1))
