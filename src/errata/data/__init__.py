"""Data sets: published benchmarks and errata's own JSONL, as frozen cases without torch.

`load_cases("zsre")` downloads, `load_cases("zsre:PATH")` reads local files,
`load_cases("zsre:sample")` the few records that ship with errata, and `load_cases("my.jsonl")`
errata's own format.
"""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from errata.arguments import expect_whole, settings_by_name
from errata.case import Case, Edit
from errata.config import did_you_mean
from errata.data._base import (
    SAMPLE,
    Dataset,
    LoadedData,
    NotUsed,
    Opened,
    sample_edits,
    sample_of,
)
from errata.data._formats import OWN, first_of, format_of, looks_like, stray
from errata.data._joining import joined
from errata.data._records import Record
from errata.data._tally import Tally
from errata.data.jsonl import check_new, read_edits, save_cases, save_edits
from errata.data.uniedit import DOMAINS, SECTORS, drop_collisions
from errata.errors import ConfigError, DataError
from errata.registry import Registry
from errata.untrusted import reachable

__all__ = [
    "DOMAINS",
    "SAMPLE",
    "SECTORS",
    "Dataset",
    "LoadedData",
    "NotUsed",
    "Opened",
    "Record",
    "datasets",
    "drop_collisions",
    "load_cases",
    "load_edits",
    "resolve",
    "sample_of",
    "save_cases",
    "save_edits",
    "split_part",
]

datasets = Registry(
    "data set", "errata.data", Path(__file__).parent, "errata.datasets", base="errata.data:Dataset",
    stated=("name", "title", "paper", "splits", "default", "sizes", "published", "names", "marks"),
)  # fmt: skip
"""All data sets by name; other distributions add theirs through entry points."""

log = logging.getLogger(__name__)


def load_cases(
    spec: str | Path,
    split: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    skip_bad: bool = False,
    options: Mapping[str, Any] | None = None,
) -> LoadedData:
    """Load the cases of a data set.

    Fields of the file that no case is made of are counted and named, in the notes and as a warning
    of the logger `errata.data`.

    Args:
        spec: `NAME` downloads from the published place; `NAME:PATH` reads a local file or folder;
            `NAME:sample` reads the few records in that format that ship with errata, about facts
            of the built-in world; a path alone is of the data set whose fields it has, errata's
            own JSONL among them. `[A:B]` or `[A:B:STEP]` behind it reads a part of the records, as
            Python slices lists: `[:500]` and `[500:]`, or `[::2]` and `[1::2]`, never share one.
        split: Part of the data set; each has its default.
        limit: Number of cases to keep.
        seed: Shuffles the records before `limit`, and decides what a mapping draws; without it
            the order of the file is kept.
        skip_bad: Leave broken records out and list them, instead of stopping at the first.
        options: Settings of the mapping, by name.

    Raises:
        ConfigError: If the data set, split or an option is unknown, or `limit` is below 1.
        DataError: If a file cannot be had, a record is broken (names file, record and field), or
            the records are of another data set than the one named.
    """
    if limit is not None:
        expect_whole(limit, "limit")
    if seed is not None:
        expect_whole(seed, "seed")
    options = settings_by_name(options, "options")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; expected at least 1")
    whole, part = split_part(str(spec))
    with reachable(spec):
        name, path = resolve(whole)
    dataset: Dataset = datasets.load(name)(options)
    opened = dataset.open(path, split)
    if path is not None and path == sample_of(name):
        opened = replace(opened, source=f"{name}:{SAMPLE}")  # the same wherever errata lies
    opened = _part_of(opened, part)
    try:
        cases, skipped, notes, tally = _mapped(dataset, opened, limit, seed, skip_bad)
    except DataError as error:
        other = None if path is None else stray(first_of(path), dataset, datasets)
        if other is None:
            raise
        hint = "\n".join(filter(None, (looks_like(other, str(path)), error.hint)))
        raise DataError(error.message, hint) from None
    cases, more = dataset.finish(cases, opened.split)
    warned = tally.unread_notes()
    for text in warned:
        log.warning("%s: %s", opened.source, text)
    bare = path is not None and whole.partition(":")[0] not in datasets
    told = [f"taken as {name}, whose fields the file has"] if bare and name != OWN else []
    return LoadedData(
        name=name,
        cases=tuple(cases),
        version=dataset.version(opened.digest),
        source=opened.source,
        split=opened.split,
        skipped=tuple(skipped),
        notes=(*told, *notes, *more, *warned),
        warned=tuple(warned),
        asked={"spec": str(spec), "split": split, "options": dict(options or {})},
    )


def load_edits(spec: str | Path) -> list[Edit]:
    """Read edits: one JSON object per line, or those of the cases of any data set.

    Fields that are not read are counted and named in a warning of the logger `errata.data`.

    Args:
        spec: A file of edits; or a data set as `load_cases` takes it, by name or as a file whose
            fields are known. `jsonl:sample` reads the edits that ship with errata.

    Raises:
        ConfigError: If the data set is unknown.
        DataError: If the file or a line is broken, has a field that is nearly called as a known
            one, or repeats an id.
    """
    text = str(spec)
    if text == f"{OWN}:{SAMPLE}":
        return read_edits(sample_edits(), text)
    whole, _ = split_part(text)
    name, colon, rest = whole.partition(":")
    with reachable(spec):
        path = Path(rest if colon and name in datasets else whole).expanduser()
        known = name if name in datasets else None
        if known is None and path.is_file():
            known = format_of(path, datasets)
    if known in (None, OWN):
        return read_edits(path)
    return [edit for case in load_cases(text).cases for edit in case.edits]


def _mapped(
    dataset: Dataset, opened: Opened, limit: int | None, seed: int | None, skip_bad: bool
) -> tuple[list[Case], list[str], list[str], Tally]:
    """Map records until there are enough cases.

    Returns:
        The cases, what is wrong with those left out, notes, and the count of fields.

    Raises:
        DataError: If a record is broken, or none is left.
    """
    records = opened.records
    if seed is not None:
        records = list(records)
        random.Random(seed).shuffle(records)
    cases: list[Case] = []
    skipped: list[str] = []
    unused: Counter[str] = Counter()
    seen: dict[str, str] = {}
    tally = Tally(dataset.passed_over)
    for record in records:
        if limit is not None and len(cases) == limit:
            break
        try:
            if isinstance(record, DataError):
                raise record
            record.counted_by(tally)
            case = joined(dataset.case(record, seed or 0), dataset.joiner)
            # that a file of another data set maps to cases by accident shows at its first record
            if not cases and (other := stray(record.peek(), dataset, datasets)) is not None:
                raise record.problem(f"the fields are those of {other}, not of {dataset.name}")
            check_new(record, case.id, seen)
        except NotUsed as reason:
            unused[str(reason)] += 1
        except DataError as error:
            if not skip_bad:
                raise
            skipped.append(error.message)
        else:
            record.count()
            cases.append(case)
    if not cases:
        first = f"; the first of {len(skipped)} broken: {skipped[0]}" if skipped else ""
        raise DataError(f"{opened.source} holds no usable record{first}")
    notes = [f"{count:,} {reason} left out" for reason, count in unused.items()]
    return cases, skipped, notes + tally.left_out_notes(), tally


_PART = re.compile(r"(.+)\[(\d*):(\d*)(?::(\d*))?\]")


def split_part(spec: str) -> tuple[str, slice | None]:
    """Split `SPEC[A:B:STEP]` into the data set and the part of its records; None: all of them.

    Raises:
        ConfigError: If the part is empty whatever the file holds.
    """
    found = _PART.fullmatch(spec)
    if found is None:
        return spec, None
    start, stop, step = (int(text) if text else None for text in found.groups()[1:])
    if step == 0 or (stop is not None and stop <= (start or 0)):
        raise ConfigError(
            f"--data {spec!r} takes no record", "Write parts as [A:B] or [A:B:STEP], A below B."
        )
    return found[1], slice(start, stop, step)


def _part_of(opened: Opened, part: slice | None) -> Opened:
    """Keep some of the records; the version says which."""
    if part is None:
        return opened
    start, stop, step = part.start or 0, part.stop, part.step or 1
    words = f"records [{start}:{'' if stop is None else stop}:{step}]"
    return replace(
        opened,
        records=islice(opened.records, start, stop, step),
        digest=f"{opened.digest} {words}",
        source=f"{opened.source}, {words}",
    )


def _place_of(name: str, rest: str) -> Path:
    """Return the path that stands behind a data set's name.

    Raises:
        ConfigError: If the sample is wanted of a data set that has none.
    """
    if rest.strip() != SAMPLE:
        return Path(rest).expanduser()
    found = sample_of(name)
    if found is None:
        able = ", ".join(f"{known}:{SAMPLE}" for known in datasets.entries if sample_of(known))
        raise ConfigError(f"{name} has no sample", f"There are: {able}. For a path: ./{SAMPLE}")
    return found


def resolve(spec: str) -> tuple[str, Path | None]:
    """Return name and path of what `NAME`, `NAME:PATH` or a path alone stands for.

    A path without a name is of the data set whose fields its first record has.

    Raises:
        ConfigError: If it is none of these.
    """
    name, colon, rest = spec.partition(":")
    if name in datasets:
        if colon and not rest.strip():
            raise ConfigError(f"--data {spec!r} names no path after the colon")
        return name, _place_of(name, rest) if colon else None
    path = Path(spec).expanduser()
    found = format_of(path, datasets) if path.exists() else None
    if found is not None or path.suffix == ".jsonl":
        return found or OWN, path
    if path.exists():
        raise ConfigError(
            f"{spec} has not the fields of any known data set; which is it?",
            f"Use --data NAME:{spec} with NAME one of: {', '.join(datasets.entries)}",
        )
    raise ConfigError(f"unknown data set {name!r}", did_you_mean(name, datasets.entries))
