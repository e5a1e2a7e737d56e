"""UltraEditBench: two million questions for lifelong editing, one of each kind a record."""

from __future__ import annotations

from errata.case import Case, Edit, Probe
from errata.data._base import HubDataset
from errata.data._records import Record


class UltraEditBench(HubDataset):
    """UltraEditBench: a question and its new answer, a rephrasing, one that must not move."""

    name = "ultraeditbench"
    title = "UltraEditBench"
    paper = (
        "Gu et al. 2025, UltraEdit: training-, subject-, and memory-free lifelong editing in large"
        " language models, https://arxiv.org/abs/2505.14679"
    )
    splits = ("all",)
    default = "all"
    repository = "XiaojieGu/UltraEditBench"
    marks = (("prompt", "rephrase_prompt", "ans", "loc", "loc_ans"),)
    id_field = "case_id"

    def case(self, record: Record, seed: int) -> Case:
        """Map one record; a subject may be missing, as the method needs none."""
        name = record.identity("case_id") if record.has("case_id") else record.key
        if record.group:  # several files
            name = f"{record.group}-{name}"
        subject, target = record.optional_text("subject"), record.text("ans").strip()
        probes = [
            Probe(text, target, "generality", "rephrase", subject=subject)
            for text in record.one_or_more_texts("rephrase_prompt")
        ]
        probes.append(Probe(record.text("loc"), record.text("loc_ans"), "locality", "locality"))
        return Case(name, (Edit(record.text("prompt"), target, subject, id=name),), tuple(probes))
