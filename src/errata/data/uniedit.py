"""UniEdit: an open-domain benchmark whose questions are chains of facts around the edit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic import Field

from errata.case import Case, Edit, Probe, ProbeKind
from errata.config import Settings, did_you_mean
from errata.data import _criteria as criteria
from errata.data._base import Dataset, Opened
from errata.data._download import fetch_repository
from errata.data._reading import read_json
from errata.data._records import Record, describe, freeze
from errata.errors import ConfigError, DataError
from errata.untrusted import refuse_special

SECTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "natural sciences": (
            "astronomy",
            "biology",
            "chemistry",
            "geoscience",
            "mathematics",
            "physics",
        ),
        "humanities": ("art", "history", "literature", "philosophy"),
        "social sciences": (
            "economics",
            "jurisprudence",
            "pedagogy",
            "political science",
            "psychology",
            "sociology",
        ),
        "applied sciences": (
            "agronomy",
            "civil engineering",
            "computer science",
            "mechanical engineering",
            "medicine",
        ),
        "interdisciplinary": (
            "data science",
            "environmental science",
            "material science",
            "sports science",
        ),
    }
)
"""The 25 domains, by sector."""

DOMAINS: tuple[str, ...] = tuple(domain for domains in SECTORS.values() for domain in domains)

YES_NO = " The answer is (Yes/No):"
_REPOSITORY = "qizhou/UniEdit"


def _plain(name: str) -> str:
    """Make `Political_Science` and `political science` the same."""
    return name.lower().replace("_", " ").replace("-", " ")


def sector_of(domain: str) -> str | None:
    """Return the sector of a domain, or None if it is not one of the 25."""
    wanted = _plain(domain)
    return next((sector for sector, domains in SECTORS.items() if wanted in domains), None)


class UniEditOptions(Settings):
    """How the evaluation set is treated as a whole."""

    drop_collisions: bool | None = Field(
        None,
        description="leave out locality questions that build on a fact which some case edits;"
        " by default in every split but train",
    )
    collide: Literal["published", "relation"] = Field(
        "published",
        description="which facts collide: published: the same two entities, or the same value;"
        " relation: also the same head and relation, whatever the answers: a question about a"
        " fact that another case makes false. Matters where many edits meet in one model",
    )


class UniEdit(Dataset):
    """UniEdit: 25 domains, one generality and one locality question per edit, twelve criteria."""

    name = "uniedit"
    title = "UniEdit"
    paper = (
        "Chen et al. 2025, UniEdit: a unified knowledge editing benchmark for large language"
        " models, https://arxiv.org/abs/2505.12345"
    )
    splits = ("test", "train")
    default = "test"
    sizes: ClassVar[dict[str, int]] = {"test": 103_723, "train": 207_419}
    marks = (("edit", "generality", "locality"),)
    # what is known of entities and relations beyond the criteria and the collisions
    passed_over = (
        "edit.head_entity",
        "edit.property",
        "edit.tail_entity",
        "edit.single_inverse",
        "generality.*.one_hops",
        "generality.*.single_path1",
        "generality.*.single_path2",
        "locality.*.one_hops",
        "locality.*.single_path1",
        "locality.*.single_path2",
    )
    Options = UniEditOptions
    options: UniEditOptions

    def open(self, path: Path | None, split: str | None) -> Opened:
        """Find the records of a split; the folder of a file tells its split if none is named."""
        opened = super().open(path, split)
        if path is None or split is not None:
            return opened
        folder = path if path.is_dir() else path.parent
        known = folder.name in self.splits
        return replace(opened, split=folder.name if known else self.default)

    def download(self, split: str | None) -> list[Path]:
        """Fetch a split from the Hub and return its domain files."""
        folder, _, _ = (split or "").partition("/")
        self._check_split(folder)
        root = fetch_repository(_REPOSITORY, f"*{folder}/*.json", data=self.name)
        place = next((p for p in sorted(root.rglob(folder)) if p.is_dir()), root)
        return self.local(place.parent if place != root else place, split)

    def local(self, path: Path, split: str | None) -> list[Path]:
        """Return domain files below `path`: the root folder, one split's folder, or one file.

        A split may name a domain or a sector too: `test/chemistry`, `test/humanities`.
        """
        if path.is_file():
            return [path]
        if not path.is_dir():
            refuse_special(path)
            raise DataError(f"no such file or folder: {path}")
        name, _, part = (split or self.default or "").partition("/")
        folder = path / name
        if not folder.is_dir():
            folder = path
            if not any(path.glob("*.json")):
                there = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
                raise DataError(
                    f"{path} has no folder {name!r} with domain files",
                    f"There are: {', '.join(there) or 'no folders'}. Choose one with --split.",
                )
            if split and path.name in self.splits and path.name != name:
                raise ConfigError(
                    f"{path} is the folder of split {path.name!r}; asked for {split!r}",
                    f"Use --data {self.name}:{path.parent}",
                )
        files = sorted(folder.glob("*.json"))
        if not files:
            raise DataError(f"{folder} holds no domain file (*.json)")
        if not part:
            return files
        wanted = {_plain(part), *SECTORS.get(_plain(part), ())}
        chosen = [file for file in files if _plain(file.stem) in wanted]
        if not chosen:
            known = [*(file.stem for file in files), *SECTORS]
            raise ConfigError(f"{folder} has no domain {part!r}", did_you_mean(part, known))
        return chosen

    def records(self, files: Sequence[Path]) -> Iterable[Record]:
        """Yield the records, domain by domain."""
        for file in files:
            yield from records_of(read_json(file), str(file), file.stem.replace("_", " "))

    def case(self, record: Record, seed: int) -> Case:
        """Map one record: the edit, its generality questions, its locality questions."""
        name = f"{record.group}-{record.key}"
        edit = record.at("edit")
        keys_of = criteria.collision_keys
        if self.options.collide == "relation":
            keys_of = criteria.relation_keys
        probes: list[Probe] = []
        for question in record.numbered("generality"):
            flags = criteria.generality_flags(question)
            probes.append(_probe(question, "generality", "uni_gen", flags, _known_hops(question)))
        keys: list[tuple[criteria.Key, ...]] = []
        kinds: list[str | None] = []
        for question in record.numbered("locality"):
            flags = criteria.locality_flags(edit, question)
            # hops of a locality question are never edited, so the probe carries none
            probes.append(_probe(question, "locality", "uni_loc", flags, ()))
            facts = criteria.hops(question)
            keys.append(tuple(key for fact in facts for key in keys_of(fact)))
            kinds.append(question.optional_text("loc_type"))
        meta = {
            "domain": record.group,
            "sector": sector_of(record.group),
            "relation": edit.text("property.id"),
            "loc_type": kinds,
            "edit_keys": keys_of(edit),
            "locality_keys": keys,
        }
        prompt = edit.text("prompt")
        written = Edit(prompt, edit.text("target"), _as_in(prompt, edit.text("subject")), id=name)
        return Case(name, (written,), tuple(probes), freeze(meta))

    def finish(self, cases: list[Case], split: str | None) -> tuple[list[Case], list[str]]:
        """Leave out locality questions that collide with an edit, unless this is for training."""
        wanted = self.options.drop_collisions
        if wanted is None:
            wanted = (split or "").partition("/")[0] != "train"
        if not wanted:
            return cases, []
        kept = drop_collisions(cases)
        count = sum(len(old.probes) - len(new.probes) for old, new in zip(cases, kept, strict=True))
        if not count:
            return kept, []
        return kept, [f"{count:,} locality questions left out: they build on a fact that is edited"]


def records_of(domain: object, file: str, name: str) -> Iterable[Record]:
    """Yield the records of one domain: a mapping from id to record.

    Raises:
        DataError: If it is not a mapping.
    """
    if not isinstance(domain, dict):
        raise DataError(f"{file} holds {describe(domain)}; expected an object of id and record")
    for key, value in domain.items():
        yield Record(value, file, f"record {key}", key, group=name)


def _probe(
    question: Record, kind: ProbeKind, name: str, flags: tuple[str, ...], hops: tuple[Edit, ...]
) -> Probe:
    yes_no = "SER" in flags
    return Probe(
        prompt=question.text("prompt") + (YES_NO if yes_no else ""),
        target=question.text("target"),
        kind=kind,
        name=name,
        criteria=flags,
        hops=hops,
        top_k=1 if yes_no else None,
        subject=question.optional_text("subject"),
    )


def _known_hops(question: Record) -> tuple[Edit, ...]:
    """Return the facts a question builds on besides the edit, in their forward wording."""
    found: list[Edit] = []
    for hop in criteria.hops(question):
        if criteria.hop_path(hop) != criteria.EDIT_PATH:
            prompt, subject = hop.text("prompt"), hop.optional_text("subject")
            found.append(Edit(prompt, hop.text("target"), subject and _as_in(prompt, subject)))
    return tuple(found)


def _as_in(prompt: str, subject: str) -> str:
    """Spell a subject as the prompt does, which may capitalise it at its beginning."""
    if subject in prompt:
        return subject
    found = re.search(re.escape(subject), prompt, re.IGNORECASE)
    return found[0] if found else subject


def drop_collisions(cases: Sequence[Case]) -> list[Case]:
    """Leave out every locality question with a hop that some case of the set edits.

    Two facts between entities collide whatever their relation and direction; facts with a value
    collide if head, relation and value agree. Cases of other data sets come back as they are.

    Args:
        cases: The whole evaluation set; the result depends on all of its edits.
    """
    edited = {key for case in cases for key in case.meta.get("edit_keys", ())}
    kept: list[Case] = []
    for case in cases:
        keys = case.meta.get("locality_keys", ())
        good = [not any(key in edited for key in question) for question in keys]
        if all(good):
            kept.append(case)
            continue
        fine = iter(good)
        probes = tuple(p for p in case.probes if p.kind != "locality" or next(fine))
        meta = dict(case.meta)
        for field in ("locality_keys", "loc_type"):
            meta[field] = tuple(x for x, ok in zip(meta[field], good, strict=True) if ok)
        kept.append(replace(case, probes=probes, meta=MappingProxyType(meta)))
    return kept
