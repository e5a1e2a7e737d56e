"""Second moments of keys, `C = E[k k^T]` on ordinary text: what an update should leave alone.

One pass over the texts serves several layers and ends after the highest of them. Sums are
checkpointed, so an interrupted pass resumes to bit-identical sums; finished moments are kept per
layer in the cache folder, named by weights, tokenizer, texts and precision, with a checksum. A file
made with `save_moments` says which model, layers and tokenizer it belongs to, and is refused for
any other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.config import Settings
from errata.data.corpus import Corpus
from errata.errors import DataError, EditError, ErrataError
from errata.locate.moment_files import Moment, given_moments, tokenizer_digest
from errata.locate.moment_files import save_moments as save_moments
from errata.locate.own_text import Unwritten, text_for
from errata.model.experts import label
from errata.model.passes import capture, module_at
from errata.model.tokens import Row
from errata.progress import Step, watched
from errata.store.cache import digest, folder_name, load_tensors, save_tensors
from errata.store.files import cache_root

if TYPE_CHECKING:
    from errata.model.lm import LM

log = logging.getLogger(__name__)

CHECKPOINT_EVERY = 256
"""Documents between two checkpoints; also the unit within which documents are sorted by length."""

AUTO_DOCUMENTS = 10_000
"""Documents drawn when their number is left open; counting ends once there are tokens enough."""

TOKENS_PER_UNIT = 20
"""Tokens per FFN unit that are enough: ten keep the quality of 100,000 documents in the study of
minimal precomputation for ROME, MEMIT and EMMET; twice that for margin."""

SAFE_TOKENS_PER_UNIT = 10
"""How many tokens per FFN unit a warning about too few asks for."""

PANEL = 512
"""Columns of `sum k k^T` that are computed together, from the diagonal on."""

ADDED_AT_ONCE = 2048
"""Keys of each layer that are collected before they are added."""


class MomentSettings(Settings):
    """On what the second moment of the keys is counted."""

    moments_text: str = Field(
        default="auto",
        description="Texts to count on: auto (wikitext-103, or self where the Hub cannot be "
        "reached; for the pocket model its own world), self (text that the model writes), world "
        "(the built-in world's text), a .txt, .json or .jsonl file, or a data set of the Hub as "
        "owner/name[:configuration]",
    )
    moments_samples: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="Documents to count on (published: 100000); auto: as many as hold 20 tokens "
        "per unit of the FFN",
    )
    moments_max_length: int | None = Field(
        default=None,
        ge=1,
        description="Tokens per document at most; none: what the model holds, up to 4096",
    )
    moments_precision: Literal["float32", "float64"] = Field(
        default="float32", description="Precision in which the sums are kept"
    )
    moments_file: str | None = Field(
        default=None,
        description="Ready moments: a safetensors file with tensors named mom2.<layer>, for "
        "example of errata.locate.moments.save_moments",
    )
    ridge: float = Field(
        default=0.0, ge=0, description="Added to the diagonal of the moment, relative to its mean"
    )


@contextmanager
def _exact_products() -> Iterator[None]:
    """No TF32 in the products of the sums; the setting of before is put back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def model_folder(kind: str, lm: LM) -> Path:
    """Return the cache folder for what was computed from the weights of a model."""
    model = digest(lm.fingerprint, str(lm.dtype))
    return cache_root() / kind / f"{folder_name(lm.name)}-{model}"


def keep(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write to the cache; a full disk costs the next run time, but not this one its result."""
    try:
        save_tensors(path, tensors, facts)
    except ErrataError as error:
        log.warning("%s; it is computed again next time", error.message)


def documents_of(settings: MomentSettings) -> int:
    """Return how many documents are drawn."""
    wanted = settings.moments_samples
    return AUTO_DOCUMENTS if wanted == "auto" else wanted


def get_moments(lm: LM, layers: Sequence[int], settings: MomentSettings) -> dict[int, Moment]:
    """Return the second moments of the keys of some layers, from the cache or by counting.

    Warns if fewer tokens than `f` were counted: the moment is then singular.

    Raises:
        DataError: If the texts or the given file cannot be read.
        EditError: If the given file is of another model, layer or tokenizer.
    """
    if settings.moments_file is not None:
        found = given_moments(lm, layers, Path(settings.moments_file).expanduser())
        _warn_if_few(found, "Give a file that was counted on more text: --set moments_file=…")
        return found
    corpus, length, dtype, enough, key = _counted_on(lm, layers, settings)
    samples = documents_of(settings)
    folder = model_folder("moments", lm)
    found: dict[int, Moment] = {}
    for layer in layers:
        stored = load_tensors(folder / f"{key}-layer{label(lm, layer)}.safetensors")
        if stored is not None:
            found[layer] = Moment(stored[0]["moment"], stored[1]["tokens"], corpus.name)
    missing = [layer for layer in layers if layer not in found]
    if missing:
        name = ".".join(label(lm, layer) for layer in missing)
        with watched(f"second moments of {lm.name}, layers {name}") as progress:
            counted = count_moments(
                lm, corpus, missing, length, dtype=dtype, enough=enough, progress=progress,
                checkpoint=folder / f"{key}-layers{name}.partial.safetensors",
            )  # fmt: skip
        for layer, moment in counted.items():
            facts = {"tokens": moment.tokens, "corpus": corpus.name}
            name_of = f"{key}-layer{label(lm, layer)}.safetensors"
            keep(folder / name_of, {"moment": moment.matrix}, facts)
        (folder / f"{key}-layers{name}.partial.safetensors").unlink(missing_ok=True)
        found.update(counted)
    _warn_if_few(found, _more_text(found, len(corpus.texts), samples, corpus.name))
    return {layer: found[layer] for layer in layers}


def _counted_on(
    lm: LM, layers: Sequence[int], settings: MomentSettings, write: bool = True
) -> tuple[Corpus, int, torch.dtype, int | None, str]:
    """Return the texts, tokens per text, precision, tokens that are enough, and the cache key."""
    enough = None
    samples = documents_of(settings)
    if settings.moments_samples == "auto":
        enough = TOKENS_PER_UNIT * max(lm.site(layer).d_in for layer in layers)
    own = None  # of its own text no more is written than makes a moment safe
    if settings.moments_samples == "auto":
        own = SAFE_TOKENS_PER_UNIT * max(lm.site(layer).d_in for layer in layers)
    corpus = text_for(lm, settings.moments_text, samples, own, write=write)
    length = settings.moments_max_length or min(lm.max_length or 4096, 4096)
    dtype = getattr(torch, settings.moments_precision)
    key = digest(corpus.id, length, str(dtype), enough, tokenizer_digest(lm))
    return corpus, length, dtype, enough, key


def cached_layers(lm: LM, layers: Sequence[int], settings: MomentSettings) -> list[int]:
    """Return those of the layers whose second moments need not be counted; it takes no time.

    Raises:
        DataError: If the texts cannot be read: their content is part of the name in the cache.
    """
    try:
        *_, key = _counted_on(lm, layers, settings, write=False)
    except Unwritten:
        return []  # nothing was counted on a text that is not there
    folder = model_folder("moments", lm)
    return [n for n in layers if (folder / f"{key}-layer{label(lm, n)}.safetensors").is_file()]


def _warn_if_few(found: Mapping[int, Moment], advice: str) -> None:
    """Say so when a moment was counted on fewer tokens than it has rows."""
    for layer, moment in found.items():
        f = len(moment.matrix)
        if 0 < moment.tokens < f:
            log.warning(
                "the second moment of layer %d was counted on %d tokens, which is fewer than its "
                "%d inputs: it is singular, and updates are unreliable; %d tokens are safe. %s",
                layer, moment.tokens, f, SAFE_TOKENS_PER_UNIT * f, advice,
            )  # fmt: skip
            return


def _more_text(found: Mapping[int, Moment], texts: int, samples: int, corpus: str) -> str:
    """Say what to type for `SAFE_TOKENS_PER_UNIT`, judging by the texts that were counted."""
    tokens = min(moment.tokens for moment in found.values())
    wanted = SAFE_TOKENS_PER_UNIT * max(len(moment.matrix) for moment in found.values())
    needed = math.ceil(wanted * texts / tokens)
    if texts == samples:
        return f"Type --set moments_samples={needed}"
    return (
        f"{corpus} holds {texts} documents; give about {needed} of this length: --set "
        "moments_text=FILE"
    )


@torch.no_grad()
def count_moments(
    lm: LM,
    corpus: Corpus,
    layers: Sequence[int],
    max_length: int,
    *,
    dtype: torch.dtype = torch.float32,
    enough: int | None = None,
    checkpoint: Path | None = None,
    every: int = CHECKPOINT_EVERY,
    progress: Step | None = None,
) -> dict[int, Moment]:
    """Count `sum k k^T` over all tokens of the texts; padding counts nothing.

    Args:
        lm: The unedited model.
        corpus: The texts.
        layers: Block numbers; all are read in the same forward passes.
        max_length: Tokens per document at most.
        dtype: Precision of the sums.
        enough: Stop after the checkpoint at which this many tokens are reached; None: count all.
        checkpoint: File that sums are kept in while counting; an existing one is continued.
        every: Documents between two checkpoints.
        progress: Called with (documents done, documents), as far as can be seen by then if `enough`
            ends it earlier.

    Raises:
        EditError: If a key is NaN or infinite.
    """
    modules = [module_at(lm, layer, "ffn") for layer in layers]
    sizes = [lm.site(layer).d_in for layer in layers]
    sums = [torch.zeros(f, f, dtype=dtype, device=lm.device) for f in sizes]
    tokens = done = 0
    facts = {"corpus": corpus.id, "layers": list(layers), "every": every}
    stored = load_tensors(checkpoint) if checkpoint is not None else None
    if stored is not None and {key: stored[1].get(key) for key in facts} == facts:
        sums = [stored[0][f"sum.{layer}"].to(lm.device) for layer in layers]
        tokens, done = stored[1]["tokens"], stored[1]["done"]
        log.info("moments: continuing after %d of %d documents", done, len(corpus.texts))
    while done < len(corpus.texts) and (enough is None or tokens < enough):
        rows = lm.text_rows(corpus.texts[done : done + every], max_length)
        begun, counted = done, tokens

        def tick(read: int, more: int, begun: int = begun, counted: int = counted) -> None:
            if progress is not None:
                total = len(corpus.texts)
                if enough is not None and counted + more:  # at so many tokens per document
                    share = enough / (counted + more)
                    total = min(total, max(begun + read, math.ceil((begun + read) * share)))
                progress(begun + read, total)

        tokens += _add_keys(lm, rows, modules, sums, tick)
        done = min(done + every, len(corpus.texts))
        if not all(bool(torch.isfinite(end)) for total in sums for end in total.aminmax()):
            raise EditError("keys hold NaN or inf on ordinary text; the moments are useless")
        if checkpoint is not None and done < len(corpus.texts):
            named = {f"sum.{n}": total for n, total in zip(layers, sums, strict=True)}
            keep(checkpoint, named, {**facts, "tokens": tokens, "done": done})
    if not tokens:
        raise DataError(f"{corpus.name} holds no token")
    return {
        layer: Moment(_mirror(total).div_(tokens).cpu(), tokens, corpus.name)
        for layer, total in zip(layers, sums, strict=True)
    }


def _add_keys(
    lm: LM, rows: Sequence[Row], modules: Sequence[torch.nn.Module], sums: Sequence[Tensor],
    tick: Callable[[int, int], None],
) -> int:  # fmt: skip
    """Add the keys of all real tokens of the rows to the sums and return their number.

    `tick` is called with the rows and tokens read so far.

    Keys are collected over forward passes, because adding a few of them to a large sum costs as
    much as reading and writing that sum.
    """
    held: list[list[Tensor]] = [[] for _ in sums]
    count = waiting = read = 0

    def add() -> None:
        for total, parts in zip(sums, held, strict=True):
            if parts:
                _add_products(total, torch.cat(parts))
                parts.clear()

    with _exact_products():
        for batch in lm.batches(rows):
            real = batch.attention_mask.bool().view(-1)
            keys, _ = capture(lm, batch, inputs=modules)
            for total, key, parts in zip(sums, keys, held, strict=True):
                parts.append(key.reshape(-1, key.shape[-1])[real].to(total.dtype))
            tokens = int(real.sum())
            read += len(batch.attention_mask)
            count, waiting = count + tokens, waiting + tokens
            if waiting >= ADDED_AT_ONCE:
                add()
                waiting = 0
            tick(read, count)
        add()
    return count


def _add_products(total: Float[Tensor, "f f"], keys: Float[Tensor, "n f"]) -> None:
    """Add `sum k k^T` to the upper triangle of `total`; the other half would repeat it."""
    for start in range(0, keys.shape[1], PANEL):
        panel = keys[:, start : start + PANEL]
        total[start : start + PANEL, start:].addmm_(panel.T, keys[:, start:])


def _mirror(total: Float[Tensor, "f f"]) -> Float[Tensor, "f f"]:
    """Copy the upper triangle over the lower one, in place; panels begin with a full square."""
    for start in range(0, len(total), PANEL):
        end = start + PANEL
        # a product of matrices may round its two halves differently
        square = total[start:end, start:end]
        square.copy_(square.triu() + square.triu(1).T)
        total[end:, start:end] = total[start:end, end:].T
    return total
