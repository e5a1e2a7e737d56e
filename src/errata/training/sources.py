"""What a training run reads: the main data set, those mixed in, and its validation cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.case import Case
from errata.data import LoadedData, datasets, load_cases, resolve, split_part
from errata.errors import ConfigError, DataError
from errata.store.digest import digest_of

TRAIN, VALIDATION = "train", "val"
EXAMPLE = "Example: --data uniedit:UniEdit,counterfact:counterfact.json:512"


@dataclass(frozen=True)
class Source:
    """One data set as it was asked for.

    Attributes:
        spec: `NAME`, `NAME:PATH` or `FILE.jsonl`, as `load_cases` takes it.
        limit: Number of records, drawn by the seed; None: all.
    """

    spec: str
    limit: int | None = None

    @property
    def name(self) -> str:
        """Name of the data set."""
        return resolve(split_part(self.spec)[0])[0]

    @property
    def path(self) -> Path | None:
        """The local file or folder, if one was named."""
        return resolve(split_part(self.spec)[0])[1]


@dataclass(frozen=True)
class Sources:
    """Everything a run reads.

    Attributes:
        pools: Data sets, the main one first.
        validation: Cases that choose the best networks; None: to be held out of the main ones.
        about: The same as JSON values, for the run's configuration and the card.
    """

    pools: tuple[LoadedData, ...]
    validation: LoadedData | None
    about: dict[str, Any]


def parse_sources(text: str) -> list[Source]:
    """Split `SPEC[,SPEC…]`, each `NAME`, `NAME:PATH`, `NAME:PATH:N`, `NAME::N` or `FILE.jsonl[:N]`.

    A part of the records is `NAME:PATH[A:B]`, with `:N` behind it N of them.

    Raises:
        ConfigError: If one of them is empty or its number is below 1.
    """
    found = []
    for spec in text.split(","):
        head, colon, number = spec.strip().rpartition(":")
        limit = None
        if colon and number.isdecimal() and (":" in head or head not in datasets):
            spec, limit = head.removesuffix(":"), int(number)
        if not spec.strip():
            raise ConfigError(f"--data {text!r} names an empty data set", EXAMPLE)
        if limit == 0:
            raise ConfigError(f"--data {text!r} asks for no record of {spec}", EXAMPLE)
        found.append(Source(spec.strip(), limit))
    return found


def read_sources(
    text: str,
    *,
    split: str | None = None,
    validation: str | None = None,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    skip_bad: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Sources:
    """Read what a run is trained on.

    Args:
        text: Data sets; see `parse_sources`.
        split: Part of the main data set; None: `train` where there is one, else its default.
        validation: Part of the main data set for validation; None: `val` where there is one.
        limit: Number of records of the main data set.
        shuffle: Draw them by the seed rather than taking the first.
        seed: Of what is drawn.
        skip_bad: Leave broken records out.
        options: Settings of the main data set.

    Raises:
        ConfigError: If a name, split or number is wrong.
        DataError: If a file cannot be had, or a record is broken.
    """
    first, *rest = parse_sources(text)
    if limit is not None and first.limit is not None:
        raise ConfigError(
            f"--limit {limit} and {first.limit} in --data {text!r} say the same twice",
            "Give one of them.",
        )
    chosen = _split(first, split)
    drawn = seed if shuffle or first.limit is not None else None
    main = load_cases(first.spec, chosen, limit or first.limit, drawn, skip_bad, options)
    pools = [main]
    pools += [load_cases(s.spec, _split(s, None), s.limit, seed, skip_bad) for s in rest]
    held = _validation(first, validation, main, seed, skip_bad, options)
    facts = [describe(s.spec, data) for s, data in zip([first, *rest], pools, strict=True)]
    about = {
        "data": facts,
        "validation": "held out" if held is None else describe(first.spec, held),
    }
    return Sources(tuple(pools), held, about)


def _split(source: Source, asked: str | None) -> str | None:
    """Return the split to read: the one asked for, else `train` where the data set has one."""
    if asked is not None:
        return asked
    known: Sequence[str] = datasets.load(source.name).splits
    if TRAIN not in known:
        return None
    path = source.path
    # a folder of one split, or of files with names of their own, says itself what it holds
    if path is not None and path.is_dir() and path.name in known:
        return None
    return TRAIN


def _validation(
    source: Source,
    asked: str | None,
    main: LoadedData,
    seed: int,
    skip_bad: bool,
    options: Mapping[str, Any] | None,
) -> LoadedData | None:
    """Return the cases of the validation split; None if the data set has none."""
    path = source.path
    if path is not None and path.is_file():
        if asked is None:
            return None
        raise ConfigError(
            f"--validation {asked}: {path} is one file, not a folder of splits",
            "Leave it out: validation cases are then held out.",
        )
    split = asked
    if split is None:
        if VALIDATION not in datasets.load(source.name).splits or main.split == VALIDATION:
            return None
        split = VALIDATION
    if split == main.split:
        raise ConfigError(
            f"--validation {split} is what is trained on", "Name another split, or leave it out."
        )
    try:
        return load_cases(source.spec, split, None, seed, skip_bad, options)
    except (ConfigError, DataError):
        if asked is not None or path is None:
            raise
        return None  # a local folder without that split


def describe(spec: str, data: LoadedData) -> dict[str, Any]:
    """Return which cases these are, as JSON values."""
    return {
        "spec": spec,
        "split": data.split,
        "version": data.version,
        "groups": len(data),
        "cases": _digest(data.cases),
    }


def _digest(cases: Sequence[Case]) -> str:
    """Say in short which cases these are, in which order."""
    return digest_of("\n".join(case.id for case in cases))[:16]
