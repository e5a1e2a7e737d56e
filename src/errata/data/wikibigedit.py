"""WikiBigEdit: half a million real changes of Wikidata as questions, in eight months."""

from __future__ import annotations

from errata.case import Case, Edit, Probe, ProbeKind
from errata.data._base import HubDataset, NotUsed
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
    splits = ("all",)
    default = "all"
    repository = "lukasthede/WikiBigEdit"
    marks = (("update", "ans", "rephrase", "loc"),)
    also_read = (("prompt", "target_new", "rephrase_prompt", "locality_prompt"),)
    passed_over = ("subject_id", "relation", "relation_id", "object", "object_id")

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
                probes.append(Probe(text, reply.strip(), kind, called, subject=about))
        edit = Edit(record.text("update"), target, subject, id=name)
        return Case(name, (edit,), tuple(probes), freeze({"tag": record.optional_text("tag")}))
