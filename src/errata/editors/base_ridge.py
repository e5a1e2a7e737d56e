"""Trained editors whose updates of several edits are solved for together instead of added up.

```
 each edit alone, on the unedited model    ──▶ its update, and what each matrix then puts out at its
                                               tokens (those that predict the answer count most)
 lowest matrix first, under what is written below it
      h   key of every token               ──▶ state of the patch: H Hᵀ and H Vᵀ, or the tokens
      v   wanted output − present output       themselves while they are few
      S = V Hᵀ (H Hᵀ + λ C)^{-1}           ──▶ one low-rank change, in place of the earlier one
```

The first few edits keep the updates that the networks wrote, bit for bit, added up as in training:
of two, the sum is the better write. The patch says of them no more than their requests; the
edit after them makes them again, and all are solved for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.editors.base import under
from errata.editors.base_trained import TrainedConfig, TrainedEditor
from errata.errors import ConfigError, PatchError
from errata.locate.moment_files import tensor_digest
from errata.locate.moments import MomentSettings, get_moments
from errata.model.lm import LM
from errata.model.passes import capture, wide
from errata.model.spec import Site
from errata.model.tokens import Row, bucket, patched
from errata.nets.capture import edit_rows
from errata.nets.ridge import Wanted
from errata.patch import Change, LowRank, Patch
from errata.patch.stack import Stack
from errata.store.digest import digest_of


class RidgeConfig(TrainedConfig):
    """How the updates of several edits become one."""

    joint: Literal["ridge", "sum"] = Field(
        default="ridge",
        description="How several edits become one update: ridge: solved for together, signals from "
        "the unedited model; sum: added up, as published, which destroys a model within ten edits",
    )
    joint_from: int = Field(
        default=3, ge=2,
        description="Edits from which the ridge is solved; fewer are added up, as in training",
    )  # fmt: skip
    joint_weight: float = Field(
        default=10.0, gt=0,
        description="Ordinary tokens that the edits' own are weighed against in the ridge",
    )  # fmt: skip
    joint_others: float = Field(
        default=0.03, ge=0, le=1,
        description="Weight of a request's tokens that predict nothing of its answer, in the ridge",
    )  # fmt: skip
    ordinary: Literal["identity", "moments"] = Field(
        default="identity",
        description="What ordinary keys are in the ridge: identity: any direction, as large as the "
        "edits' keys; moments: their second moment, counted once per model",
    )


AT_EDIT_TIME = ("joint", "joint_from", "joint_weight", "joint_others", "ordinary")
"""Settings of the ridge: networks do not depend on them."""


@dataclass
class _Task:
    """One group that is solved for: its edits, and before them those that were added up so far.

    Attributes:
        number: Of the group.
        edits: Requests whose keys are new to the state.
        other: The earlier patch without what this editor wrote.
        wanted: By matrix, what earlier steps want.
        writes: The changes of the matrices solved so far.
    """

    number: int
    edits: list[Edit]
    other: Patch
    wanted: dict[str, Wanted]
    writes: list[Change]


class RidgeEditor(TrainedEditor):
    """A trained editor that joins its edits by ridge regression unless told to add them up."""

    Config: ClassVar[type[RidgeConfig]] = RidgeConfig
    at_edit_time: ClassVar[tuple[str, ...]] = (*TrainedEditor.at_edit_time, *AT_EDIT_TIME)

    untrained: ClassVar[tuple[str, ...]] = (*TrainedEditor.untrained, *AT_EDIT_TIME)

    @property
    def settings(self) -> RidgeConfig:
        """The settings, typed."""
        assert isinstance(self.config, RidgeConfig)
        return self.config

    @property
    def lasts(self) -> bool:
        """Whether its edits bear others after them: not if they are added up."""
        return self.settings.joint == "ridge"

    # ------------------------------------------------------------------ editing

    @torch.no_grad()
    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Write a few edits as the networks say, and solve for more of them together."""
        self.network(lm)  # its card completes the settings
        if self.settings.joint == "sum":
            return super().edit_groups(lm, groups, before)
        few = [
            number
            for number, (group, patch) in enumerate(zip(groups, before, strict=True))
            if self._are_few(group, patch)
        ]
        made: dict[int, Patch] = {}
        if few:
            plain = super().edit_groups(lm, [groups[n] for n in few], [before[n] for n in few])
            for n, patch in zip(few, plain, strict=True):
                made[n] = self._noted(patch, before[n])
        tasks = [
            self._task(lm, number, groups[number], before[number])
            for number in range(len(groups))
            if number not in made
        ]
        if tasks:
            self._solve(lm, tasks)
        for task in tasks:
            state = self._state([_name(change) for change in task.writes], task.wanted)
            made[task.number] = self.make_patch(lm, task.writes, groups[task.number], **state)
        return [made[number] for number in range(len(groups))]

    # ------------------------------------------------------------------ what a patch says of it

    @property
    def _mark(self) -> str:
        return f"{self.name}.joint"

    def _knows(self, patch: Patch) -> bool:
        return any(key.startswith(f"{self._mark}.") for key in patch.state)

    def _said(self, patch: Patch, what: str) -> list[Any]:
        """Return what the patch lists: `writes` or `added`."""
        text = patch.state.get(f"{self._mark}.{what}")
        return json.loads(text) if isinstance(text, str) else []

    def _are_few(self, group: Sequence[Edit], patch: Patch) -> bool:
        """Whether all edits so far are few enough to be added up, and have been."""
        added = self._said(patch, "added")
        plain = bool(added) or not self._knows(patch)
        return plain and len(added) + len(group) < self.settings.joint_from

    def _state(self, writes: Sequence[str], wanted: Mapping[str, Wanted]) -> dict[str, Any]:
        """Return what the next edit has to know: which changes give way, and what is wanted."""
        state: dict[str, Any] = {f"{self._mark}.writes": json.dumps(sorted(set(writes)))}
        for path, own in wanted.items():
            state |= own.tensors(f"{self._mark}.{path}")
        return state

    def _noted(self, patch: Patch, before: Patch) -> Patch:
        """Note the requests of edits that are added up."""
        writes = [*self._said(before, "writes"), *map(_name, patch.changes)]
        added = [*self._said(before, "added"), *map(asdict, patch.edits)]
        state = self._state(writes, {})
        state[f"{self._mark}.added"] = json.dumps(added, ensure_ascii=False)
        return replace(patch, state={**patch.state, **state})

    def _task(self, lm: LM, number: int, group: Sequence[Edit], patch: Patch) -> _Task:
        """Take apart what was there before a group."""
        paths = [site.path for _, site in self.sites(lm)]
        wanted = {path: Wanted.from_tensors(patch.state, f"{self._mark}.{path}") for path in paths}
        edits = [Edit(**fields) for fields in self._said(patch, "added")]
        return _Task(number, [*edits, *group], self._without(patch), wanted, [])

    def _without(self, patch: Patch) -> Patch:
        """Return a patch without what this editor wrote and keeps in it.

        Raises:
            PatchError: If that is no longer in it as it was written.
        """
        if not self._knows(patch):
            return patch
        written = set(self._said(patch, "writes"))
        names = {name: at for at, name in enumerate(map(_name, patch.changes)) if name in written}
        if len(names) < len(written):
            raise PatchError(
                f"the earlier patch holds edits of {self.name}, but not as they were written: it "
                "was scaled, merged or compacted since",
                f"Edit after the patch that {self.name} made, or all facts in one call; or add "
                "edits up: --set joint=sum",
            )
        gone = set(names.values())
        changes = tuple(c for at, c in enumerate(patch.changes) if at not in gone)
        state = {k: v for k, v in patch.state.items() if not k.startswith(f"{self._mark}.")}
        return replace(patch, changes=changes, state=state)

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put what was solved for in the place of what was written before."""
        if not any(
            isinstance(own, Tensor) for key, own in added.state.items() if self._mark in key
        ):
            return before + added
        return self._without(before) + added

    # ------------------------------------------------------------------ the solve

    def _solve(self, lm: LM, tasks: Sequence[_Task]) -> None:
        """Fill in the writes of all tasks, the lowest matrix first."""
        sites = self.sites(lm)
        edits = [edit for task in tasks for edit in task.edits]
        owner = [at for at, task in enumerate(tasks) for _ in task.edits]
        rows = edit_rows(lm, edits)
        shares = [_shares(row, self.settings.joint_others).to(lm.device) for row in rows]
        wanted = self._alone(lm, sites, edits, rows)
        moments = self._moments(lm, sites)
        for number, (_, site) in enumerate(sites):
            now = [task.other + Patch(tuple(task.writes)) for task in tasks]
            keys: list[Tensor] = [torch.empty(0)] * len(edits)
            values = list(keys)
            for groups, places in under(lm, now):
                place = dict(zip(groups, places, strict=True))
                some = [i for i, at in enumerate(owner) if at in place]
                own = patched([rows[i] for i in some], [place[owner[i]] for i in some])
                for i, (h, y) in zip(some, _at_tokens(lm, [site], own)[0], strict=True):
                    keys[i], values[i] = h, wanted[i][number] - y
            for at, task in enumerate(tasks):
                mine = [i for i, own in enumerate(owner) if own == at]
                h, v, share = (torch.cat([p[i] for i in mine]) for p in (keys, values, shares))
                wanting = task.wanted[site.path].add(h, v, share)
                B, A = wanting.solve(self.settings.joint_weight, moments.get(number))
                task.wanted[site.path] = wanting
                task.writes.append(LowRank(site.path, B.to(h).contiguous(), A.to(h).contiguous()))

    def _alone(
        self, lm: LM, sites: Sequence[tuple[int, Site]], edits: Sequence[Edit], rows: Sequence[Row]
    ) -> list[list[Float[Tensor, "t d_out"]]]:
        """Return what each matrix puts out at each edit's tokens if it is made alone."""
        singles = super().edit_groups(lm, [[edit] for edit in edits], [Patch()] * len(edits))
        found: list[list[Tensor]] = []
        for start in range(0, len(edits), SIDE_BY_SIDE):
            some = slice(start, start + SIDE_BY_SIDE)
            with Stack(lm, singles[some]):
                own = patched(rows[some], range(len(singles[some])))
                by_site = _at_tokens(lm, [site for _, site in sites], own)
            found += [[pairs[i][1] for pairs in by_site] for i in range(len(own))]
        return found

    def _moments(self, lm: LM, sites: Sequence[tuple[int, Site]]) -> dict[int, Tensor]:
        """Return the second moment of ordinary keys by number of the matrix, if it is wanted.

        Raises:
            ConfigError: If first matrices of FFNs are edited, whose keys nobody counts.
        """
        if self.settings.ordinary == "identity":
            return {}
        if self.settings.matrices == "all":
            raise ConfigError(
                "ordinary=moments: second moments are counted at the FFN's output matrices only",
                "Use ordinary=identity, or networks trained with matrices=out.",
            )
        layers = [layer for layer, _ in sites]
        found = lm.once(
            ("ridge moments", *layers), lambda: get_moments(lm, layers, MomentSettings())
        )
        made = {}
        for number, layer in enumerate(layers):
            matrix = found[layer].matrix.double().clone()
            # rare directions would be free otherwise, and singular moments could not be solved
            matrix.diagonal().add_(FLOOR * float(matrix.diagonal().mean()))
            made[number] = matrix.to(lm.device)
        return made


SIDE_BY_SIDE = 64
"""Single edits that are looked at in one stack."""

FLOOR = 1e-3
"""Of the mean diagonal of second moments, added to it."""


def _name(change: Change) -> str:
    """Return what a change is recognised by: its place and its bits."""
    digests = [tensor_digest(tensor) for _, tensor in sorted(change.tensors().items())]
    return digest_of(" ".join([change.path, *digests]))


def _shares(row: Row, others: float) -> Float[Tensor, " t"]:
    """Return each token's weight: one at those that predict the answer."""
    shares = torch.full((len(row.ids) - 1,), others)
    shares[list(row.positions)] = 1.0
    return shares


def _at_tokens(
    lm: LM, sites: Sequence[Site], rows: Sequence[Row]
) -> list[list[tuple[Float[Tensor, "t d_in"], Float[Tensor, "t d_out"]]]]:
    """Return, for each matrix and row, input and output at all tokens but the last."""
    modules = [lm.module(site.path) for site in sites]
    found: list[list[Any]] = [[None] * len(rows) for _ in sites]
    for index in bucket(rows, lm.max_tokens, max_padding=lm.pass_cost):
        batch = lm.batch(rows, index)
        ins, outs = capture(lm, batch, inputs=modules, outputs=modules)
        for number, (x, y) in enumerate(zip(ins, outs, strict=True)):
            shape = (*batch.input_ids.shape, -1)
            for line, i in enumerate(index):
                end = len(rows[i].ids) - 1  # nothing is predicted from the answer's last token
                found[number][i] = tuple(wide(t.reshape(shape)[line, :end]) for t in (x, y))
    return found
