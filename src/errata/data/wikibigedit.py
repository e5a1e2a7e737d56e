"""WikiBigEdit: half a million real changes of Wikidata as questions, in eight time steps."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from errata.case import Case, Edit, Probe, ProbeKind
from errata.data._base import Dataset, HubDataset, NotUsed
from errata.data._questions import PORTABILITY
from errata.data._records import Record, freeze
from errata.data.locft import flat_case

QUESTIONS: tuple[tuple[str, str, ProbeKind, str], ...] = (
    ("rephrase", "ans", "generality", "rephrase"),
    ("personas", "ans", "generality", "personas"),
    ("mhop", "mhop_ans", "generality", "mhop"),
    ("loc", "loc_ans", "locality", "locality"),
)
"""Field of the question and of its answer, kind and name of the probe."""


class WikiBigEdit(HubDataset):
    """WikiBigEdit: new and updated facts with rephrasings, personas, second hops and locality."""

    name = "wikibigedit"
    title = "WikiBigEdit"
    paper = (
        "Thede et al. 2025, Understanding the limits of lifelong knowledge editing in LLMs,"
        " https://arxiv.org/abs/2503.05683"
    )
    splits = (
        "20240201_20240220",
        "20240220_20240301",
        "20240301_20240320",
        "20240320_20240401",
        "20240401_20240501",
        "20240501_20240601",
        "20240601_20240620",
        "20240620_20240701",
        "all",
    )
    default = "20240201_20240220"
    published: ClassVar[dict[str, str]] = {
        "20240201_20240220": "https://huggingface.co/datasets/lukasthede/WikiBigEdit/resolve/main/wiki_big_edit_20240201_20240220.json",
        "20240220_20240301": "https://huggingface.co/datasets/lukasthede/WikiBigEdit/resolve/main/wiki_big_edit_20240220_20240301.json",
        "20240301_20240320": "https://huggingface.co/datasets/lukasthede/WikiBigEdit/resolve/main/wiki_big_edit_20240301_20240320.json",
        "20240320_20240401": "https://huggingface.co/datasets/lukasthede/WikiBigEdit/resolve/main/wiki_big_edit_20240320_20240401.json",
        "20240401_20240501": "https://huggingface.co/datasets/lukasthede/WikiBigEdit/resolve/main/wiki_big_edit_20240401_20240501.json",
        "20240501_20240601": "https://huggingface.co/datasets/lukasthede/WikiBigEdit/resolve/main/wiki_big_edit_20240501_20240601.json",
        "20240601_20240620": "https://huggingface.co/datasets/lukasthede/WikiBigEdit/resolve/main/wiki_big_edit_20240601_20240620.json",
        "20240620_20240701": "https://huggingface.co/datasets/lukasthede/WikiBigEdit/resolve/main/wiki_big_edit_20240620_20240701.json",
    }
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "20240201_20240220": ("wiki_big_edit_20240201_20240220.json",),
        "20240220_20240301": ("wiki_big_edit_20240220_20240301.json",),
        "20240301_20240320": ("wiki_big_edit_20240301_20240320.json",),
        "20240320_20240401": ("wiki_big_edit_20240320_20240401.json",),
        "20240401_20240501": ("wiki_big_edit_20240401_20240501.json",),
        "20240501_20240601": ("wiki_big_edit_20240501_20240601.json",),
        "20240601_20240620": ("wiki_big_edit_20240601_20240620.json",),
        "20240620_20240701": ("wiki_big_edit_20240620_20240701.json",),
    }
    repository = "lukasthede/WikiBigEdit"
    marks = (("update", "ans", "rephrase", "loc"),)
    also_read = (("prompt", "target_new", "rephrase_prompt", "locality_prompt"),)
    passed_over = ("subject_id", "relation", "relation_id", "object", "object_id")

    def download(self, split: str | None) -> list[Path]:
        """Fetch one time step, or all of them."""
        return super().download(split) if split == "all" else Dataset.download(self, split)

    def local(self, path: Path, split: str | None) -> list[Path]:
        """Return a file, the file of a time step, or all JSON files of a folder."""
        whole = split in (None, "all")
        return super().local(path, split) if whole else Dataset.local(self, path, split)

    def case(self, record: Record, seed: int) -> Case:
        """Map one record; every question may be null. LocFT's form of it is read too."""
        if not record.has("update") and record.has("target_new"):
            return flat_case(record)
        if not record.has("update") or not record.has("ans"):
            raise NotUsed("records without a question or an answer")
        name = record.key
        if record.group:  # several files
            name = f"{record.group}-{name}"
        subject, target = record.optional_text("subject"), record.text("ans").strip()
        probes: list[Probe] = []
        for question, answer, kind, called in QUESTIONS:
            text, reply = record.optional_text(question), record.optional_text(answer)
            if text is not None and reply is not None:
                about = subject if answer == "ans" else None
                flags = (PORTABILITY,) if called == "mhop" else ()
                probes.append(Probe(text, reply.strip(), kind, called, flags, subject=about))
        edit = Edit(record.text("update"), target, subject, id=name)
        return Case(name, (edit,), tuple(probes), freeze({"tag": record.optional_text("tag")}))
