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
from jaxtyping import Int
from torch import Tensor, nn

from errata.errors import ModelError, PatchError
from errata.model.compat import take_cache, without_cache
from errata.model.hooks import after, before, hooked
from errata.model.passes import Pass
from errata.model.prefixes import Prefix, make_prefix
from errata.model.tokens import Row, bucket
from errata.patch.changes import Context, Router
from errata.patch.changes.base import fitting
from errata.patch.routers import answered, teams

if TYPE_CHECKING:
    from errata.model.lm import LM


WORTH = 16
"""Tokens that several contexts have to begin with alike to be computed once."""


BEGUN = "begun_behind_context"
"""Set on a cache whose first columns are a context's."""


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
        self._routes = teams(routers)
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
            parts.append(make_prefix(self.lm, part, starts, known=shared))
        return Prefix.joined(parts)

    def rewritten(self, rows: Sequence[Row]) -> list[Row] | None:
        """Return rows that the model by itself answers as it answers these behind their routes.

        Passes over them are nested: routes are not at work. None: what acts here cannot be said so.
        """
        if self.ids or self.watched or not all(team.rewrites for team in self._routes):
            return None
        batch = self.lm.batch(rows, range(len(rows)))
        device = batch.input_ids.device
        patches = [row.patch if self._stacked else -1 for row in rows]
        seen = Pass(
            batch.input_ids, batch.attention_mask.bool(),
            torch.tensor(batch.prompts, device=device), None, torch.tensor(patches, device=device),
        )  # fmt: skip
        texts = seen.tokens()
        groups = patches if self._stacked else [0] * len(rows)
        with fitting("the route of this patch"):
            for team in self._routes:  # each says anew what it takes: the last one answers
                lines, owner = team.members_of(groups, device)
                if len(lines):
                    inside = team.scope(seen.rows(lines), owner)
                    lines, owner = lines[inside], owner[inside]
                if len(lines):
                    new = team.rewritten(seen.rows(lines), owner)
                    for line, text in zip(lines.tolist(), new, strict=True):
                        texts[line] = text
        return [
            Row(text, (len(text) - 1,), (), len(text), patch=row.patch)
            for text, row in zip(texts, rows, strict=True)
        ]

    def in_front(self, rows: Sequence[Row]) -> Prefix | None:
        """Return the context of each row, if contexts are all that acts and every row has one.

        Passes behind it run inside `aside`: it is not put in front of them once more.
        """
        if self._prefix is None or self.watched or self._routes:
            return None
        own = self._lines([row.patch if self._stacked else 0 for row in rows])
        if min(own) < 0:  # its bits are the model's own, which masked columns would change
            return None
        return self._prefix.rows(torch.tensor(own, device=self.lm.device))

    def _lines(self, groups: Sequence[int]) -> list[int]:
        """Return where the context of each group stands among all, -1: it has none."""
        number = {group: line for line, group in enumerate(self.ids)}
        return [number.get(group, -1) for group in groups]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Put no context in front of what runs inside."""
        before, self._prefix = self._prefix, None
        try:
            yield
        finally:
            self._prefix = before

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
        if self.watched or (self._routes and not self.lm.installed.nested):
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
        own = self._lines(self._rows(count))
        mask = inputs.get("attention_mask")
        self._hidden = False
        # among rows that have none the pass stays the model's own, to the bit: masked columns would
        # change the order of sums. But a cache that was begun with others has their contexts in it
        begun = getattr(inputs.get(self.lm.cache_name), BEGUN, False)
        counted = not behind or mask is None or mask.shape[1] == behind + length
        if max(own) < 0 and counted and not begun:
            return
        lines = torch.tensor(own, device=tokens.device)
        # rows without a context borrow the first one, and a mask that hides it
        context = prefix.rows(lines.clamp(min=0))
        has = lines >= 0
        visible = context.mask * has[:, None]
        width = visible.shape[1]
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
            cache = context.cache()
            setattr(cache, BEGUN, True)
            inputs.update(self.lm.behind(cache))

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
                    logits = answered(team, owner, seen, lines, logits)
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
