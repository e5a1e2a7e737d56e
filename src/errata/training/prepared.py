"""What a frozen model says about training groups: computed once, used at every step.

Hidden states below the lowest edited block, gradient factors of the edits and the unedited
model's answers do not depend on the networks. If they fit the memory budget they are computed in
fixed batches before training starts, so that a resumed run sees the same bits; otherwise they are
computed anew at every step, each of them once.

Answers are kept as the states behind the last block, from which the model's own head says them
again: a vocabulary is a hundred times as wide as a state. What memory has no room for may be kept
in files, which the system reads as they are wanted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from errata.model.packing import Line
from errata.model.passes import capture as capture_outputs
from errata.model.passes import module_at, reuse_below, wide
from errata.model.spec import Site
from errata.model.tokens import Batch, Row, bucket
from errata.nets.capture import Factors, Signals, capture
from errata.training.groups import Group

if TYPE_CHECKING:
    from errata.model.lm import LM

CHUNK = 256
"""Rows of one batch of the preparation; fixed, because results depend on it in the last bit."""


Split = Callable[[Sequence[Row]], Iterable[list[int]]]


class _Ragged:
    """Rows of different length in one tensor, filled in place: no second copy while it grows.

    Args:
        lengths: Number of tokens of each row.
        like: Gives width, type and device.
        folder: Where a file is made that holds them; None: they are held in memory.
    """

    def __init__(self, lengths: Sequence[int], like: Tensor, folder: Path | None = None) -> None:
        self.lengths = list(lengths)
        starts = torch.tensor([0, *self.lengths]).cumsum(0)
        self.starts: list[int] = starts[:-1].tolist()
        shape = (int(starts[-1]), like.shape[-1])
        self._home = like.device
        if folder is None:
            self.flat = like.new_empty(shape)
            return
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            pass
        flat = torch.from_file(file.name, shared=True, size=shape[0] * shape[1], dtype=like.dtype)
        self.flat = flat.view(shape)

    def put(self, i: int, value: Float[Tensor, "n d"]) -> None:
        """Fill in one row."""
        self.flat[self.starts[i] : self.starts[i] + self.lengths[i]] = value

    def get(self, i: int) -> Float[Tensor, "n d"]:
        """Return one row."""
        return self.flat[self.starts[i] : self.starts[i] + self.lengths[i]].to(self._home)

    def padded(self, index: Sequence[int], length: int) -> Float[Tensor, "N length d"]:
        """Return some rows, padded on the right with zeros."""
        width = self.flat.shape[-1]
        out = self.flat.new_zeros(len(index), length, width, device=self._home)
        for at, i in enumerate(index):
            out[at, : self.lengths[i]] = self.get(i)
        return out


class Prepared:
    """Everything about a model's groups that training does not change.

    Args:
        lm: The frozen model.
        sites: Edited matrices; none: only the unedited model's answers are prepared.
        groups: Training groups.
        memory_gb: Budget for keeping results in memory.
        progress: Called with (done, total) while they are computed.
        disk_gb: Budget for keeping them in files; nothing is kept if they would need more.
        folder: Where these files are made; they can be removed with it.
    """

    def __init__(
        self,
        lm: LM,
        sites: Sequence[tuple[int, Site]],
        groups: Sequence[Group],
        memory_gb: float = 4.0,
        progress: Callable[[int, int], None] | None = None,
        disk_gb: float = 0.0,
        folder: Path | None = None,
    ) -> None:
        self.lm, self.sites = lm, list(sites)
        self.lowest = min((layer for layer, _ in sites), default=0)
        self.hidden: _Ragged | None = None
        self.number: dict[tuple[int, ...], int] = {}
        self.signals: dict[Row, int] = {}
        self.factors: list[tuple[_Ragged, _Ragged]] = []
        self.base: dict[Row, int] = {}
        self.states: _Ragged | None = None
        self.folder: Path | None = None
        need = _bytes(lm, sites, groups, self.lowest) if groups else 0
        if need > memory_gb * 1e9 and folder is not None and need <= disk_gb * 1e9:
            folder.mkdir(parents=True, exist_ok=True)
            self.folder = folder
        if groups and (self.folder is not None or need <= memory_gb * 1e9):
            self._fill(groups, _fixed, progress or (lambda done, total: None))

    # ------------------------------------------------------------------ computed once

    def _fill(
        self, groups: Sequence[Group], split: Split, progress: Callable[[int, int], None]
    ) -> None:
        texts = {row.ids: row for g in groups for row in (*g.edit_rows, *g.gens, *g.locs)}
        edits = list(dict.fromkeys(self._edit_rows(groups)))
        locs = list(dict.fromkeys(row for g in groups for row in g.locs))
        jobs = len(texts) * bool(self.lowest) + len(edits) + len(locs)
        done = 0
        if self.lowest:
            rows = list(texts.values())
            for index in split(rows):
                out = self._compute_below(self.lm.batch(rows, index))
                if self.hidden is None:
                    self.hidden = _Ragged([len(row.ids) for row in rows], out, self.folder)
                for at, i in enumerate(index):
                    self.hidden.put(i, out[at, : len(rows[i].ids)])
                done += len(index)
                progress(done, jobs)
            self.number = {row.ids: i for i, row in enumerate(rows)}
        lengths = [len(row.ids) for row in edits]
        for index in split(edits):
            some = [edits[i] for i in index]
            made = self._capture(some)
            if not self.factors:
                keep = self.lm.dtype
                self.factors = [
                    (
                        _Ragged(lengths, f.h.to(keep), self.folder),
                        _Ragged(lengths, f.u, self.folder),
                    )
                    for f in made
                ]
            for (hs, us), f in zip(self.factors, made, strict=True):
                for at, i in enumerate(index):
                    hs.put(i, f.h[at, : lengths[i]])
                    us.put(i, f.u[at, : lengths[i]])
            done += len(index)
            progress(done, jobs)
        self.signals = {row: i for i, row in enumerate(edits)}
        for index in split(locs):
            for i, state in zip(index, self._last([locs[i] for i in index]), strict=True):
                if self.states is None:
                    sizes = [len(row.positions) for row in locs]
                    self.states = _Ragged(sizes, state, self.folder)
                self.states.put(i, state)
            done += len(index)
            progress(done, jobs)
        self.base = {row: i for i, row in enumerate(locs)}

    def _edit_rows(self, groups: Sequence[Group]) -> list[Row]:
        """Return the requests whose factors are wanted: none where no matrix is edited."""
        return [row for g in groups for row in g.edit_rows] if self.sites else []

    @torch.no_grad()
    def _compute_below(self, batch: Batch) -> Float[Tensor, "B T d"]:
        _, (hidden,) = capture_outputs(
            self.lm, batch, outputs=[module_at(self.lm, self.lowest - 1, "block")]
        )
        return hidden

    def _capture(self, rows: Sequence[Row]) -> tuple[Factors, ...]:
        below = (lambda batch: self._lookup(rows, batch)) if self.lowest else None
        return capture(self.lm, self.sites, rows, below=below)

    def _lookup(self, rows: Sequence[Row], batch: Batch) -> Float[Tensor, "B T d"]:
        index = [self.number.get(rows[i].ids) for i in batch.index]
        known = [number for number in index if number is not None]
        if self.hidden is None or len(known) < len(index):
            return self._compute_below(batch)
        return self.hidden.padded(known, batch.input_ids.shape[1])

    @torch.no_grad()
    def _last(self, rows: Sequence[Row]) -> list[Float[Tensor, "n d"]]:
        """Return what the last block puts out at the supervised positions of each row."""
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        last = module_at(self.lm, self.lm.n_layers - 1, "block")
        for index in bucket(rows, self.lm.max_tokens, max_padding=self.lm.pass_cost):
            batch = self.lm.batch(rows, index)
            with self.below(rows, batch):
                _, (hidden,) = capture_outputs(self.lm, batch, outputs=[last])
            for line, i in enumerate(index):
                found[i] = hidden[line, list(rows[i].positions)]
        return found

    @torch.no_grad()
    def _said(self, states: Float[Tensor, "N d"]) -> Float[Tensor, "N V"]:
        """Return log-probabilities after such states: the model's own code behind its blocks."""
        count, home = len(states), self.lm.device
        ones = torch.ones(count, 1, dtype=torch.long, device=home)
        batch = Batch(ones * self.lm.pad_id, ones, ones - 1, tuple(range(count)))
        at = torch.stack([torch.arange(count, device=home), ones[:, 0] - 1], 1)
        with reuse_below(self.lm, self.lm.n_layers - 1, states[:, None]):
            return wide(self.lm.logits(batch, at)).log_softmax(-1)

    # ------------------------------------------------------------------ used at every step

    def of(self, groups: Sequence[Group]) -> Prepared:
        """Return what these groups need: this object, or a new one if it keeps nothing of theirs.

        Texts that occur as edit, generality question and locality question then pass the lower
        blocks once, not once for each purpose.
        """
        edits = self._edit_rows(groups)
        locs = (row for g in groups for row in g.locs)
        texts = (row.ids for g in groups for row in (*g.edit_rows, *g.gens, *g.locs))
        if (
            all(row in self.signals for row in edits)
            and all(row in self.base for row in locs)
            and (not self.lowest or all(ids in self.number for ids in texts))
        ):
            return self
        made = Prepared(self.lm, self.sites, [])

        def split(rows: Sequence[Row]) -> Iterable[list[int]]:
            return bucket(rows, self.lm.max_tokens, max_padding=self.lm.pass_cost)

        made._fill(groups, split, lambda done, total: None)
        return made

    def below(self, rows: Sequence[Row], batch: Batch):
        """Return a context in which the blocks below the lowest edited one are skipped."""
        if not self.lowest:
            return nullcontext()
        return reuse_below(self.lm, self.lowest - 1, self._lookup(rows, batch))

    def line_below(self, rows: Sequence[Row], line: Line) -> Float[Tensor, "1 N d"]:
        """Return what comes out below the lowest edited block at the tokens of rows in a line."""
        number = [self.number.get(row.ids) for row in rows]
        known = [n for n in number if n is not None]
        if self.hidden is not None and len(known) == len(rows):
            return torch.cat([self.hidden.get(n) for n in known])[None]
        return self._compute_below(line.batch)

    def signals_of(self, groups: Sequence[Group]) -> Signals:
        """Return the gradient factors of the groups' edits."""
        rows = [row for g in groups for row in g.edit_rows]
        edits = tuple(edit for g in groups for edit in g.edits)
        owner = torch.tensor(
            [at for at, g in enumerate(groups) for _ in g.edits], device=self.lm.device
        )
        if rows and all(row in self.signals for row in rows):
            index = [self.signals[row] for row in rows]
            length = max(len(row.ids) for row in rows)
            sizes = torch.tensor([len(row.ids) for row in rows], device=self.lm.device)
            real = torch.arange(length, device=self.lm.device)[None] < sizes[:, None]
            factors = []
            for h, u in self.factors:
                us = u.padded(index, length)
                hs = h.padded(index, length).to(us.dtype)
                factors.append(Factors(hs, us, (us != 0).any(-1), real))
            return Signals(tuple(factors), owner, edits, tuple(rows))
        return Signals(self._capture(rows), owner, edits, tuple(rows))

    def answers_of(self, rows: Sequence[Row]) -> list[Float[Tensor, "n V"]]:
        """Return the unedited model's log-probabilities at the supervised positions of each row."""
        if not rows:
            return []
        missing = list(dict.fromkeys(row for row in rows if row not in self.base))
        fresh = dict(zip(missing, self._last(missing), strict=True)) if missing else {}
        states = [
            fresh[row] if self.states is None or row in fresh else self.states.get(self.base[row])
            for row in rows
        ]
        return list(self._said(torch.cat(states)).split([len(state) for state in states]))


def _fixed(rows: Sequence[Row]) -> Iterable[list[int]]:
    """Chunks of rows of similar length; they depend on the rows alone."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), rows[i].ids))
    for start in range(0, len(order), CHUNK):
        yield order[start : start + CHUNK]


def _bytes(lm: LM, sites: Sequence[tuple[int, Site]], groups: Sequence[Group], lowest: int) -> int:
    """Bytes that keeping everything would take."""
    half = lm.dtype.itemsize
    full = max(4, half)
    texts = {row.ids for g in groups for row in (*g.edit_rows, *g.gens, *g.locs)}
    width = lm.embedding.shape[-1]
    total = sum(len(ids) for ids in texts) * width * half if lowest else 0
    edits = {row for g in groups for row in g.edit_rows}
    per_token = sum(site.d_in * half + site.d_out * full for _, site in sites)
    total += sum(len(row.ids) for row in edits) * per_token
    locs = {row for g in groups for row in g.locs}
    return total + sum(len(row.positions) for row in locs) * width * half
