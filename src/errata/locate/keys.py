"""What an edited projection sees and answers at one token: keys, values and hidden states.

A forward pass runs only over the tokens up to the wanted one (nothing later can matter in a causal
model) and ends at the last module that is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from errata.case import Edit
from errata.errors import EditError
from errata.locate.contexts import Contexts, Mean
from errata.locate.pieces import needs_subject, rows_of
from errata.model.kept import Kept, putting, resuming
from errata.model.passes import Place, capture, module_at, wide
from errata.model.tokens import Batch, Row

if TYPE_CHECKING:
    from errata.model.lm import LM

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """What one layer sees and answers at one token of each row, float32 at least.

    Attributes:
        keys: Input of the FFN output projection.
        values: Its output, bias and earlier patches included.
        hidden: Output of the block, if asked for.
    """

    keys: Float[Tensor, "n f"]
    values: Float[Tensor, "n d"]
    hidden: Float[Tensor, "n d"] | None


class Known:
    """What passes over the same rows share while a method writes block after block, ascending.

    A change of block `l` leaves the blocks below alone, so what was read in front of block `l`
    serves until block `l` is changed, and the next pass, to block `l + 1`, begins there:

    ```
     reading block l      0 … l-1 │ l          the output of block l-1 is kept
     reading block l+1    ─────── │ l   l+1    two blocks run, not l + 2; it is block l's output now
    ```

    Rows of the same edit and tokens are the same row, whichever pass and patch they come in.
    """

    def __init__(self) -> None:
        self._edits: Sequence[int] = ()
        self._kept: Kept | None = None
        self._next: Kept | None = None

    def next_block(self, layer: int) -> None:
        """Go on to a block: its passes keep what stands in front of it."""
        self._kept, self._next = self._next, Kept(layer - 1)

    def of(self, edits: Sequence[int]) -> Known:
        """Say which edits the rows of the next pass belong to, as many rows to each."""
        self._edits = edits
        return self

    @contextmanager
    def around(self, lm: LM, rows: Sequence[Row], batch: Batch) -> Iterator[None]:
        """Let the pass of one batch begin where it can, and keep what it computes for the next."""
        each = len(rows) // len(self._edits)
        names = [(self._edits[i // each], rows[i].ids) for i in batch.index]
        assert self._next is not None, "next_block comes first"
        begin = self._next if self._next.holds(names) else self._kept
        with resuming(lm, begin, names, batch), putting(lm, self._next, names, batch):
            yield


@torch.no_grad()
def read(
    lm: LM,
    rows: Sequence[Row],
    at: Sequence[int],
    layers: Sequence[int],
    *,
    hidden: bool = False,
    known: Known | None = None,
) -> dict[int, Reading]:
    """Read keys and values of several layers in one pass over the rows.

    Args:
        lm: The model.
        rows: Tokenised prompts.
        at: For each row, the position to read.
        layers: Block numbers.
        hidden: Whether block outputs are wanted too.
        known: What earlier passes over the same rows have kept.

    Returns:
        One reading per layer; its rows are in the order of `rows`.
    """
    cut = [
        Row(row.ids[: p + 1], (p,), (), p + 1, patch=row.patch)
        for row, p in zip(rows, at, strict=True)
    ]
    projections = [module_at(lm, layer, "ffn") for layer in layers]
    blocks = [module_at(lm, layer, "block") for layer in layers] if hidden else []
    parts: list[tuple[tuple[int, ...], list[Tensor]]] = []
    for batch in lm.batches(cut):
        with nullcontext() if known is None else known.around(lm, cut, batch):
            keys, values = capture(lm, batch, projections, [*projections, *blocks])
        b = torch.arange(len(batch), device=lm.device)
        t = torch.tensor([at[i] for i in batch.index], device=lm.device)
        parts.append((batch.index, [wide(x[b, t]) for x in (*keys, *values)]))
    back = torch.tensor([i for index, _ in parts for i in index], device=lm.device).argsort()
    merged = [torch.cat(column)[back] for column in zip(*(p for _, p in parts), strict=True)]
    n = len(layers)
    return {
        layer: Reading(merged[j], merged[n + j], merged[2 * n + j] if hidden else None)
        for j, layer in enumerate(layers)
    }


@torch.no_grad()
def start_values(
    lm: LM, bare: Sequence[Row], layer: int, places: tuple[Place, ...]
) -> dict[Place, Float[Tensor, "e d"]]:
    """Return the outputs at the subjects' last tokens of bare prompts, before anything is added."""
    cut = [
        replace(row, ids=row.ids[: row.subject_last + 1], positions=(), labels=()) for row in bare
    ]
    batch = lm.batch(cut, range(len(cut)))
    _, outputs = capture(lm, batch, outputs=[module_at(lm, layer, place) for place in places])
    rows = torch.arange(len(cut), device=lm.device)
    at = torch.tensor([row.subject_last for row in bare], device=lm.device)
    return {
        place: wide(output.view(len(cut), batch.input_ids.shape[1], -1)[rows, at])
        for place, output in zip(places, outputs, strict=True)
    }


def subject_rows(
    lm: LM, edits: Sequence[Edit], contexts: Contexts, patches: Sequence[int] | None = None
) -> list[Row]:
    """Tokenise every edit's prompt in every context, without target; contexts vary fastest.

    Args:
        lm: The model.
        edits: Edits with subjects.
        contexts: Texts in front of the prompts.
        patches: For each edit, the patch in the active stack that its rows run under.

    Raises:
        EditError: If an edit has no subject, or its subject is not in the prompt.
    """
    for edit in edits:
        if edit.subject is None and needs_subject(edit):
            raise EditError(
                f"the edit {edit.prompt!r} has no subject, which this editor needs",
                'Give one: --subject TEXT, or "subject" in the record',
            )
    rows: list[Row] = []
    for edit, patch in zip(edits, patches or [-1] * len(edits), strict=True):
        own = rows_of(lm, edit, contexts, answered=False)
        if own[0].subject_last in contexts.sinks:
            warn_once(lm, edit)
        rows += [replace(row, patch=patch) for row in own]
    return rows


def warn_once(lm: LM, edit: Edit) -> None:
    """Warn of an edit whose keys are taken at an attention sink, the first time it is met."""

    def warn() -> bool:
        log.warning(
            "%r stands at the beginning of %r, where keys of %s hardly depend on the token (an "
            "attention sink): other prompts will move; put some words in front of it, or leave "
            "sink_prefix at auto and contexts at a recipe",
            edit.subject, edit.prompt, lm.name,
        )  # fmt: skip
        return True

    lm.once(("warned of an attention sink", edit), warn)


@dataclass(frozen=True)
class EditKeys:
    """Keys and values of edits at one layer.

    Attributes:
        mean_key: Weighted mean over the contexts.
        mean_value: The same mean of the projection's outputs.
        key: Key of the bare prompt.
        value: Output of the projection on the bare prompt.
        hidden: Output of the block on the bare prompt, if asked for.
    """

    mean_key: Float[Tensor, "e f"]
    mean_value: Float[Tensor, "e d"]
    key: Float[Tensor, "e f"]
    value: Float[Tensor, "e d"]
    hidden: Float[Tensor, "e d"] | None


def edit_keys(
    lm: LM,
    edits: Sequence[Edit],
    contexts: Contexts,
    layers: Sequence[int],
    *,
    mean: Mean = "flat",
    hidden: bool = False,
    patches: Sequence[int] | None = None,
    known: Known | None = None,
) -> Mapping[int, EditKeys]:
    """Read the keys of edits at the last token of their subject, for several layers in one pass.

    Args:
        lm: The model.
        edits: Edits with subjects.
        contexts: Texts in front of the prompts; the first is the bare prompt.
        layers: Block numbers.
        mean: How contexts are averaged.
        hidden: Whether block outputs are wanted too.
        patches: For each edit, the patch in the active stack that it is read under.
        known: What earlier passes over the same edits have kept.

    Raises:
        EditError: If an edit lacks its subject.
    """
    rows = subject_rows(lm, edits, contexts, patches)
    n = len(contexts)
    at = [row.subject_last for row in rows]
    readings = read(lm, rows, at, layers, hidden=hidden, known=known)
    weights = contexts.weights(mean).to(lm.device)

    def average(tensor: Tensor) -> Tensor:
        return torch.einsum("ecx,c->ex", tensor.view(len(edits), n, -1), weights.to(tensor.dtype))

    return {
        layer: EditKeys(
            average(reading.keys),
            average(reading.values),
            reading.keys[::n],
            reading.values[::n],
            None if reading.hidden is None else reading.hidden[::n],
        )
        for layer, reading in readings.items()
    }
