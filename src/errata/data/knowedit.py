"""KnowEdit: EasyEdit's collection of benchmarks, with portability and locality by name.

Four of its six sets are of one form. Sanitation is an object of two lists, edits to a refusal and
questions that stay; ConvSent has opinions on a topic, good and bad ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from errata.case import Case, Edit, Probe
from errata.data._base import Dataset
from errata.data._questions import answers_of, named_questions
from errata.data._reading import read_bytes, read_json, read_records
from errata.data._records import Record, describe, freeze
from errata.errors import DataError


class KnowEdit(Dataset):
    """KnowEdit: ZsRE, WikiData (recent, counterfactual), WikiBio, ConvSent and Sanitation."""

    name = "knowedit"
    title = "KnowEdit"
    paper = (
        "Zhang et al. 2024, A comprehensive study of knowledge editing for large language models,"
        " https://arxiv.org/abs/2401.01286"
    )
    splits = (
        "zsre",
        "wiki_counterfact",
        "wiki_counterfact-train",
        "wiki_recent",
        "wiki_recent-train",
        "wikibio",
        "wikibio-train",
        "convsent",
        "convsent-train",
        "convsent-val",
        "sanitation",
        "sanitation-train",
    )
    default = "zsre"
    published: ClassVar[dict[str, str]] = {
        "zsre": "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark/ZsRE/ZsRE-test-all.json",
        "wiki_counterfact": "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark/wiki_counterfact/test_cf.json",
        "wiki_counterfact-train": "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark/wiki_counterfact/train_cf.json",
        "wiki_recent": "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark/wiki_recent/recent_test.json",
        "wiki_recent-train": "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark/wiki_recent/recent_train.json",
        "wikibio": "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark/WikiBio/wikibio-test-all.json",
        "wikibio-train": "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark/WikiBio/wikibio-train-all.json",
    }
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "zsre": ("ZsRE-test-all.json", "ZsRE/ZsRE-test-all.json"),
        "wiki_counterfact": ("test_cf.json", "wiki_counterfact/test_cf.json"),
        "wiki_counterfact-train": ("train_cf.json", "wiki_counterfact/train_cf.json"),
        "wiki_recent": ("recent_test.json", "wiki_recent/recent_test.json"),
        "wiki_recent-train": ("recent_train.json", "wiki_recent/recent_train.json"),
        "wikibio": ("wikibio-test-all.json", "WikiBio/wikibio-test-all.json"),
        "wikibio-train": ("wikibio-train-all.json", "WikiBio/wikibio-train-all.json"),
        "convsent": ("blender_test.json", "convsent/blender_test.json"),
        "convsent-train": ("blender_train.json", "convsent/blender_train.json"),
        "convsent-val": ("blender_val.json", "convsent/blender_val.json"),
        "sanitation": ("trivia_qa_test.json", "Sanitation/trivia_qa_test.json"),
        "sanitation-train": ("trivia_qa_train.json", "Sanitation/trivia_qa_train.json"),
    }
    marks = (
        ("prompt", "target_new", "locality"),
        ("prompt", "target_new", "portability"),
        ("text", "labels", "locality"),
        ("success", "locality"),
        ("ent", "pos", "neg"),
    )
    passed_over = ("cond",)

    def records(self, files: Sequence[Path]) -> Iterable[Record | DataError]:
        """Yield the records; of Sanitation each edit with one of the questions that stay."""
        for file in files:
            if re.match(rb'\{\s*"(?:success|locality)"', read_bytes(file).lstrip()[:64]):
                yield from _sanitation_records(file)
            else:
                yield from read_records(file, self.id_field)

    def case(self, record: Record, seed: int) -> Case:
        """Map one record; WikiBio's `concept`, `text` and `labels` are subject, prompt, target."""
        if record.has("success"):
            return _sanitation(record)
        if record.has("ent"):
            return _opinion(record, seed)
        name = record.identity("case_id") if record.has("case_id") else record.key
        prompt = record.text("prompt" if record.has("prompt") else "text")
        targets = answers_of(record, "target_new" if record.has("target_new") else "labels")
        if not targets:
            raise record.wrong("target_new", "a text with at least one visible character", "")
        subject = record.optional_text("subject" if record.has("subject") else "concept")
        true = answers_of(record, "ground_truth") if record.has("ground_truth") else ()
        probes = [
            Probe(text, targets[0], "generality", "rephrase", subject=subject)
            for text in _rephrasings(record)
        ]
        probes += named_questions(record, "portability", "generality")
        probes += named_questions(record, "locality", "locality")
        edit = Edit(prompt, targets[0], subject, true[0] if true else None, name)
        return Case(name, (edit,), tuple(probes), freeze({"ground_truth": true}))

    def finish(self, cases: list[Case], split: str | None) -> tuple[list[Case], list[str]]:
        """Ask of every opinion whether that on the next topic stays, as published."""
        done = []
        for case, other in zip(cases, [*cases[1:], *cases[:1]], strict=True):
            if "topic" in case.meta and "topic" in other.meta and other is not case:
                asked = other.edits[0]
                probe = Probe(asked.prompt, asked.target, "locality", "other_topic")
                case = replace(case, probes=(*case.probes, probe))
            done.append(case)
        return done, []


def _sanitation_records(file: Path) -> Iterator[Record]:
    value = read_json(file)
    edits, kept = value.get("success"), value.get("locality", [])
    for field, entries in (("success", edits), ("locality", kept)):
        if not isinstance(entries, list):
            raise DataError(f"{file}: field {field!r} is {describe(entries)}; expected a list")
    for number, entry in enumerate(edits):
        beside = {"locality": kept[number % len(kept)]} if kept else {}
        yield Record({"success": entry, **beside}, str(file), f"success {number}", str(number))


def _sanitation(record: Record) -> Case:
    """Map an answer that the model is to keep to itself: the refusal is the new one."""
    one = record.at("success")
    edit = Edit(
        one.text("question"), one.text("target_new"), None, one.optional_text("ground_truth"),
        record.key,
    )  # fmt: skip
    probes = []
    if record.has("locality"):
        kept = record.at("locality")
        kept.has("target_new")  # the refusal stands there too, and is not what should be said
        probes.append(Probe(kept.text("question"), kept.text("ground_truth"), "locality", "kept"))
    return Case(record.key, (edit,), tuple(probes))


OPINIONS = ("What do you think of {}?", "How do you view {}?", "What do you feel about {}?")
"""Three of the published ways to ask: of the edit, and of the questions whether it took."""


def _opinion(record: Record, seed: int) -> Case:
    """Map a topic: one side is drawn and written, and further opinions of both are compared."""
    topic = record.text("ent").strip()
    sides = {side: record.visible_texts(side, "blank opinions", 1) for side in ("pos", "neg")}
    # drawn per record, so that neither order nor limit changes what a record becomes
    drawn = random.Random(f"{seed}:{record.key}").choice(("pos", "neg"))
    own, other = sides[drawn], sides["neg" if drawn == "pos" else "pos"]
    if not own or not other:
        raise record.problem("an opinion of each side is needed, in `pos` and in `neg`")
    pairs = list(zip(own[1:] or own, other[1:] or other, strict=False))
    probes = [
        Probe(ask.format(topic), mine, "choice", "sentiment", choices=(theirs,))
        for ask, (mine, theirs) in zip(OPINIONS[1:], pairs, strict=False)
    ]
    edit = Edit(OPINIONS[0].format(topic), own[0], topic, None, record.key)
    return Case(record.key, (edit,), tuple(probes), freeze({"topic": topic, "sentiment": drawn}))


def _rephrasings(record: Record) -> tuple[str, ...]:
    """Return the rephrased prompts: none, one, or a list; blank ones do not count."""
    for field in ("rephrase_prompt", "rephrase"):
        if record.has(field):
            value = record.get(field)
            if isinstance(value, list):
                return record.visible_texts(field, "blank rephrased prompts")
            text = record.optional_text(field)
            return () if text is None else (text,)
    return ()
