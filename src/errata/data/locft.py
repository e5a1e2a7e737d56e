"""LocFT's files: WikiBigEdit in one flat form, zsRE in MEND's, both asked as plain questions."""

from __future__ import annotations

from typing import ClassVar

from errata.case import Case, Edit, Probe
from errata.data._base import Dataset
from errata.data._questions import answers_of, named_questions
from errata.data._records import Record, freeze


class LocFT(Dataset):
    """The flat form of LocFT (and of many files of EasyEdit): one question of each kind a record.

    Everything but `prompt` and `target_new` may be missing.
    """

    name = "locft"
    title = "LocFT"
    paper = (
        "Yang et al. 2025, Fine-tuning done right in model editing,"
        " https://arxiv.org/abs/2509.22072"
    )
    splits = ("wikibigedit", "zsre")
    default = "wikibigedit"
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "wikibigedit": ("wikibigedit_3k.json",),
        "zsre": ("locft_zsre_3k.json", "zsre_3k.json"),
    }
    marks = (("prompt", "target_new", "rephrase_prompt", "locality_prompt"),)
    also_read = (("src", "rephrase", "alt", "loc", "loc_ans"),)
    passed_over = ("cond",)

    def case(self, record: Record, seed: int) -> Case:
        """Map one record of either form."""
        if record.has("src"):
            return _mend(record)
        return flat_case(record)


def flat_case(record: Record) -> Case:
    """Map a record with prompt, target_new, rephrase_prompt, locality_prompt and its answer."""
    name = record.identity("case_id") if record.has("case_id") else record.key
    subject, target = record.optional_text("subject"), record.text("target_new").strip()
    true = answers_of(record, "ground_truth") if record.has("ground_truth") else ()
    probes = [
        Probe(text, target, "generality", "rephrase", subject=subject)
        for text in _texts(record, "rephrase_prompt")
    ]
    probes += named_questions(record, "portability", "generality")
    asked = _texts(record, "locality_prompt")
    kept = record.text("locality_ground_truth") if asked else ""
    probes += [Probe(text, kept, "locality", "locality") for text in asked]
    edit = Edit(record.text("prompt"), target, subject, true[0] if true else None, name)
    return Case(name, (edit,), tuple(probes))


def _texts(record: Record, field: str) -> tuple[str, ...]:
    if not record.has(field):
        return ()
    return record.one_or_more_texts(field)


def _mend(record: Record) -> Case:
    """Map a record of MEND's form of zsRE, the question without a suffix."""
    answers = record.texts("answers", optional=True)
    subject, target, name = record.optional_text("subject"), record.text("alt"), record.key
    true = answers[0] if answers else record.optional_text("pred")
    edit = Edit(record.text("src"), target, subject, true, name)
    probes = (
        Probe(record.text("rephrase"), target, "generality", "rephrase", subject=subject),
        *named_questions(record, "portability", "generality"),
        Probe(record.text("loc"), record.text("loc_ans"), "locality", "NQ"),
    )
    meta = {"prediction": record.optional_text("pred"), "answers": answers}
    return Case(name, (edit,), probes, freeze(meta))
