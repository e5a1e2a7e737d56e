"""Text that the model writes itself, for machines without a corpus: samples from its start token.

Where no text is given and the Hub cannot be reached, second moments are counted on what the model
says unasked. Every text has a seed of its own, so text 17 is the same however many are wanted; what
was written is kept in the cache folder by the fingerprint of the weights, and an interrupted run
goes on from there.
"""

from __future__ import annotations

import logging
import os
import random
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from errata.data.corpus import Corpus, load_corpus
from errata.errors import DataError, ErrataError
from errata.model.generating import Growing, parts_of
from errata.model.tokens import Row
from errata.progress import watched
from errata.store.cache import digest, folder_name, load_json, save_json
from errata.store.digest import digest_of_all
from errata.store.files import cache_root
from errata.world.shipped import knows_world

if TYPE_CHECKING:
    from errata.model.lm import LM

log = logging.getLogger(__name__)

OWN = "self"
"""Names the text that the model writes itself."""

FORMAT = 1
LENGTH = 256
"""Tokens of a text at most."""

TOP_K = 100
"""Tokens to choose from at each step, by their renormalised probabilities."""

TOKENS = 50_000
"""Tokens that are written where nobody says how many are needed."""

SEED = 0
_WROTE = "wrote itself"
HUB_SECONDS = 5.0
"""How long the Hub may take to answer before the model writes its own text."""


class Unwritten(DataError):
    """The model's own text is not there yet, and was only looked for."""


def text_for(
    lm: LM, source: str, samples: int, tokens: int | None = None, *, write: bool = True
) -> Corpus:
    """Return ordinary text: what `load_corpus` finds, or what the model writes itself.

    The latter for `self`, and for `auto` where the Hub cannot be reached.

    Args:
        lm: The model.
        source: As `load_corpus` takes it, or `self`.
        samples: Documents at most.
        tokens: How many tokens are needed; of its own text no more are written.
        write: Whether the model may write now, which takes minutes.

    Raises:
        DataError: If a text that was asked for by name cannot be read.
        Unwritten: If the model would have to write and may not.
    """
    if source == OWN:
        return own_text(lm, samples, tokens, write=write)
    if source != "auto" or knows_world(lm.name):
        return load_corpus(lm.name, source, samples)
    if hub_answers():
        try:
            return load_corpus(lm.name, source, samples)
        except DataError as error:
            reason = error.message
    else:
        reason = "the Hub cannot be reached"
    found = own_text(lm, samples, tokens, write=write)
    lm.once(
        ("own text instead", reason),
        lambda: log.warning(
            "%s: %s counts as ordinary text. Give another with --set moments_text=FILE",
            reason, found.name,
        ),
    )  # fmt: skip
    return found


@cache
def hub_answers() -> bool:
    """Whether the Hub answers within seconds; asked once per process.

    The client itself tries for half a minute before it gives up.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    place = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(place, method="HEAD"), timeout=HUB_SECONDS
        ):
            return True
    except urllib.error.HTTPError:
        return True  # it answers
    except (OSError, ValueError):
        return False


def own_text(
    lm: LM, samples: int, tokens: int | None = None, seed: int = SEED, *, write: bool = True
) -> Corpus:
    """Return texts that the model wrote, from the cache as far as they are there.

    Args:
        lm: The unedited model.
        samples: Texts at most.
        tokens: Tokens that are enough; default: `TOKENS`.
        seed: Seed of all texts.
        write: Whether what is missing is written.

    Raises:
        DataError: If the model ends every text at once.
        Unwritten: If something is missing and is not to be written.
    """
    wanted = tokens or TOKENS
    path = _file(lm, seed)
    stored = load_json(path)
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        stored = {"texts": [], "tokens": []}
    texts: list[str] = list(stored["texts"])
    counts: list[int] = list(stored["tokens"])
    name = f"text that {lm.name} {_WROTE} (seed {seed})"
    with watched(f"{lm.name} writes ordinary text, tokens") as progress:
        while sum(counts[:samples]) < wanted and len(texts) < samples:
            if not write:
                raise Unwritten(f"{name} is not there yet")
            begun = sum(counts)
            progress(min(begun, wanted), wanted)
            _extend(
                lm, texts, counts, samples, wanted, seed,
                # with the last token of a text it is kept, and no sooner
                lambda more, begun=begun: progress(min(begun + more, wanted - 1), wanted),
            )  # fmt: skip
            if not sum(counts):
                raise DataError(
                    f"{lm.name} ends every text at once: it cannot write its own",
                    "Give a text: --set moments_text=FILE, or the built-in one: world",
                )
            try:
                save_json(path, {"format": FORMAT, "texts": texts, "tokens": counts})
            except ErrataError as error:
                log.warning("%s; it is written again next time", error.message)
    # what another layer or run needed beyond this is not part of it: as many as were wanted
    enough, total = 0, 0
    while enough < min(len(texts), samples) and total < wanted:
        total += counts[enough]
        enough += 1
    chosen = tuple(text for text in texts[:enough] if text.strip())
    return Corpus(name, chosen, digest_of_all(chosen))


def is_own(name: str) -> bool:
    """Whether the name of a text says that the model wrote it."""
    return _WROTE in name


def _file(lm: LM, seed: int) -> Path:
    key = digest("own text", FORMAT, lm.fingerprint, LENGTH, TOP_K, seed)
    return cache_root() / "texts" / f"{folder_name(lm.name)}-{key}.json"


def _extend(
    lm: LM,
    texts: list[str],
    counts: list[int],
    samples: int,
    wanted: int,
    seed: int,
    show: Callable[[int], None],
) -> None:
    """Write as many further texts as run side by side; `show` is called with their tokens."""
    start = Row((start_id(lm),), (0,), (), 1)
    length = min(LENGTH, lm.max_length or LENGTH)
    mean = sum(counts) / len(counts) if counts else length
    left = max(1, round((wanted - sum(counts)) / max(mean, 1)))
    count = min(samples - len(texts), left)
    (part, *_) = parts_of(lm, [start] * count, [length] * count)
    numbers = range(len(texts), len(texts) + len(part))
    for ids in sampled(lm, start, [f"{seed}/{number}" for number in numbers], length, show=show):
        texts.append(str(lm.tokenizer.decode(ids, skip_special_tokens=True)).strip())
        counts.append(len(ids))


def start_id(lm: LM) -> int:
    """Return the token in front of every text: start of text, else end of text."""
    for token in (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return lm.pad_id


@torch.no_grad()
def sampled(
    lm: LM,
    start: Row,
    seeds: Sequence[str],
    length: int,
    top_k: int = TOP_K,
    show: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Sample texts side by side at temperature 1, each from a generator of its own.

    Args:
        lm: The model.
        start: What every text begins with.
        seeds: Seed of each text.
        length: Tokens of a text at most, the start included.
        top_k: Tokens to choose from.
        show: Called with the number of tokens that are written, after each step.

    Returns:
        The new tokens of each text; it ends in front of an end-of-text token.
    """
    growing = Growing(lm, [start] * len(seeds))
    draws = [random.Random(seed) for seed in seeds]
    ends = lm.stop_ids
    while growing.live:
        values, tokens = growing.logits().float().topk(top_k, dim=-1)
        bounds = values.double().softmax(-1).cumsum(-1).cpu()
        at = torch.tensor([[draws[i].random()] for i in growing.live], dtype=torch.float64)
        place = torch.searchsorted(bounds, at * bounds[:, -1:]).clamp_(max=top_k - 1)
        chosen = tokens.cpu().gather(1, place)[:, 0].tolist()
        done = [
            token in ends or len(growing.ids[i]) + 1 >= length
            for i, token in zip(growing.live, chosen, strict=True)
        ]
        growing.extend([-1 if token in ends else token for token in chosen], done)
        if show is not None:
            show(sum(map(len, growing.ids)) - len(seeds) * len(start.ids))
    return [ids[len(start.ids) :] for ids in growing.ids]
