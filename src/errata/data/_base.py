"""What all data sets share: finding files, options, and the result of loading."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from errata.case import Case
from errata.config import Settings, did_you_mean, settings_from
from errata.data._download import fetch, fetch_repository
from errata.data._reading import read_records
from errata.data._records import Record
from errata.errors import ConfigError, DataError
from errata.spacing import PUBLISHED
from errata.store.digest import digest_of
from errata.store.files import sha256_of
from errata.untrusted import refuse_special

SAMPLE = "sample"
"""What stands for the path of the sample file that ships with errata: `zsre:sample`."""

_SAMPLES = Path(__file__).parent / "samples"


def sample_of(name: str) -> Path | None:
    """Return the sample file or folder of a data set; None if it has none."""
    places = (_SAMPLES / f"{name}.json", _SAMPLES / name)
    if name == "jsonl":
        places = (_SAMPLES / "cases.jsonl",)
    return next((place for place in places if place.exists()), None)


def sample_edits() -> Path:
    """Return the sample file of edits."""
    return _SAMPLES / "edits.jsonl"


class NotUsed(Exception):
    """A record that the rules of its data set leave out: counted, but nothing is broken."""


@dataclass(frozen=True)
class LoadedData:
    """Cases, and what is needed to say which ones they are.

    Attributes:
        name: Name of the data set.
        cases: The cases, in the order in which they are to be used.
        version: SHA-256 over the bytes of the files, the version of the mapping and its options.
        source: Where the records come from: address, path, or how they were made.
        split: The split that was read, if the data set has splits.
        skipped: One message per broken record that was left out (`skip_bad`).
        notes: What else is worth knowing: records and questions left out by rule, conflicts,
            fields that are not read.
        warned: Those of the notes that were given as warnings too.
        asked: How it was asked for: `spec`, `split` and `options`; empty if it was not loaded.
    """

    name: str
    cases: tuple[Case, ...]
    version: str
    source: str
    split: str | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cases)


@dataclass(frozen=True)
class Opened:
    """Records ready to be mapped.

    Attributes:
        records: The records, or the error that tells why one cannot be read.
        digest: SHA-256 over what was read.
        source: Where they come from.
        split: The split that was read.
    """

    records: Iterable[Record | DataError]
    digest: str
    source: str
    split: str | None


def digest_of_files(files: Sequence[Path]) -> str:
    """SHA-256 over the checksums of `files`, in order; names do not count."""
    total = hashlib.sha256()
    for file in files:
        try:
            total.update(bytes.fromhex(sha256_of(file)))
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from None
    return total.hexdigest()


class Dataset(ABC):
    """A data set: where its files are published, and how a record becomes a `Case`.

    A subclass has literal class attributes, so that it can be listed without being imported.

    Attributes:
        name: Name on the command line.
        title: Name for people.
        paper: Citation and address.
        splits: Names of the splits that are published.
        default: The split that is read when none is named.
        sizes: Records of each split as published, as far as they were counted.
        published: Address per split, where a split is one file.
        names: File names per split under which a local folder is searched.
        marks: Fields by which a record of each of its forms is recognised, dotted where they lie
            inside others; of several data sets the one whose form has the most fields is meant.
        also_read: Forms of other data sets that are read under this name too, as `marks`.
        passed_over: Fields that the published files have and no case is made of; all others that
            are not read are counted and named. `*` stands for any key.
        id_field: Field that is shown in messages besides the position of a record.
        joiner: What stands between prompts and answers: as published, a space; `auto` for texts of
            the user's own (see `errata.spacing`).
        mapping: Raised whenever records map to other cases than before; part of the version.
        Options: Settings of the mapping.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    default: ClassVar[str | None] = None
    sizes: ClassVar[Mapping[str, int]] = {}
    published: ClassVar[Mapping[str, str]] = {}
    names: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    marks: ClassVar[tuple[tuple[str, ...], ...]] = ()
    also_read: ClassVar[tuple[tuple[str, ...], ...]] = ()
    passed_over: ClassVar[tuple[str, ...]] = ()
    id_field: ClassVar[str | None] = None
    joiner: ClassVar[str] = PUBLISHED
    mapping: ClassVar[int] = 1
    Options: ClassVar[type[Settings]] = Settings

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = settings_from(type(self).Options, options, where=f"data set {self.name}")

    def version(self, digest: str) -> str:
        """SHA-256 that stands for the records, the mapping and its options."""
        options = json.dumps(self.options.model_dump(mode="json"), sort_keys=True)
        text = f"{self.name} mapping {self.mapping} {options} {digest}"
        return digest_of(text)

    def open(self, path: Path | None, split: str | None) -> Opened:
        """Find the records of a split, downloading them if no path is given.

        Raises:
            ConfigError: If there is no such split.
            DataError: If files are missing, broken, or cannot be fetched.
        """
        if path is None:
            split = split or self.default
            files = self.download(split)
            source = self.published.get(split or "", self.name)
        else:
            files = self.local(path, split)
            source = str(path)
        return Opened(self.records(files), digest_of_files(files), source, split)

    def download(self, split: str | None) -> list[Path]:
        """Return the files of a split from the cache, fetched from the published place if needed.

        Raises:
            ConfigError: If the split is not published.
            DataError: If it cannot be fetched.
        """
        self._check_split(split)
        url = self.published.get(split or "")
        if url is None:
            names = ", ".join(self.names.get(split or "", ())) or "a file"
            raise ConfigError(
                f"{self.name}: split {split!r} has no published place",
                f"Get {names} and use --data {self.name}:PATH",
            )
        return [fetch(url, data=self.name)]

    def local(self, path: Path, split: str | None) -> list[Path]:
        """Return the files to read below a local path, which is a file or a folder.

        Raises:
            ConfigError: If there is no such split.
            DataError: If nothing suitable is there.
        """
        if split is not None:
            self._check_split(split)
        if path.is_file():
            return [path]
        if not path.is_dir():
            refuse_special(path)
            raise DataError(f"no such file or folder: {path}")
        for name in self.names.get(split or self.default or "", ()):
            if (path / name).is_file():
                return [path / name]
        there = sorted(file for file in path.iterdir() if file.suffix in {".json", ".jsonl"})
        if split is None and len(there) == 1:
            return there
        found = ", ".join(file.name for file in there) or "no JSON file"
        wanted = " or ".join(self.names.get(split or self.default or "", ())) or "a JSON file"
        raise DataError(
            f"{path} has {found}; expected {wanted}",
            f"Name the file: --data {self.name}:{path}/FILE",
        )

    def _check_split(self, split: str | None) -> None:
        if split not in self.splits:
            raise ConfigError(
                f"{self.name} has no split {split!r}", did_you_mean(str(split or ""), self.splits)
            )

    def records(self, files: Sequence[Path]) -> Iterable[Record | DataError]:
        """Yield the records of `files` in order: lists, or one record per line."""
        for file in files:
            yield from read_records(file, self.id_field)

    @abstractmethod
    def case(self, record: Record, seed: int) -> Case:
        """Map one record; `seed` decides where the mapping has to draw.

        Raises:
            DataError: If the record is broken.
            NotUsed: If the rules of the data set leave it out.
        """

    def finish(self, cases: list[Case], split: str | None) -> tuple[list[Case], list[str]]:
        """Treat the evaluation set as a whole; return it and notes about what was done."""
        return cases, []


class HubDataset(Dataset):
    """A data set of which all JSON files of a repository of the Hub are read, in order of names.

    Attributes:
        repository: Its name on the Hub.
    """

    repository: ClassVar[str]

    def download(self, split: str | None) -> list[Path]:
        """Fetch the files from the Hub."""
        self._check_split(split)
        return self._files(fetch_repository(self.repository, "*.json*", data=self.name))

    def local(self, path: Path, split: str | None) -> list[Path]:
        """Return a file, or all JSON files of a folder."""
        if not path.is_dir():
            return super().local(path, split)
        return self._files(path)

    def _files(self, folder: Path) -> list[Path]:
        files = [file for file in sorted(folder.rglob("*")) if file.suffix in {".json", ".jsonl"}]
        if not files:
            raise DataError(
                f"{folder} has no JSON file", f"Name the file: --data {self.name}:{folder}/FILE"
            )
        return files

    def records(self, files: Sequence[Path]) -> Iterable[Record | DataError]:
        """Yield the records; those of several files say which they are of."""
        for file in files:
            for record in read_records(file, self.id_field):
                if len(files) > 1 and isinstance(record, Record):
                    record.group = file.stem
                yield record
