"""CounterFact: counterfactual edits, in ROME's nested form and EasyEdit's flat form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from errata.case import Case, Edit, Probe
from errata.data._base import Dataset
from errata.data._records import Record, freeze, read_list

_KEPT = ("relation_id", "target_new.id", "target_true.id")


class CounterFact(Dataset):
    """CounterFact: false but plausible facts, and neighbours that share the true answer."""

    name = "counterfact"
    title = "CounterFact"
    paper = (
        "Meng et al. 2022, Locating and editing factual associations in GPT,"
        " https://arxiv.org/abs/2202.05262"
    )
    splits = ("all", "multi", "train", "val", "edit")
    default = "all"
    published: ClassVar[dict[str, str]] = {
        "all": "https://rome.baulab.info/data/dsets/counterfact.json",
        "multi": "https://memit.baulab.info/data/dsets/multi_counterfact.json",
    }
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "all": ("counterfact.json",),
        "multi": ("multi_counterfact.json",),
        "train": ("counterfact-train.json",),
        "val": ("counterfact-val.json",),
        "edit": ("counterfact-edit.json",),
    }

    def records(self, files: Sequence[Path]) -> Iterable[Record]:
        """Yield the records of all files."""
        for file in files:
            yield from read_list(file, "case_id")

    def case(self, record: Record, seed: int) -> Case:
        """Map one record; a `requested_rewrite` marks the nested form."""
        name = record.identity("case_id")
        if record.has("requested_rewrite"):
            return _nested(record, name)
        return _flat(record, name)


def _nested(record: Record, name: str) -> Case:
    rewrite = record.at("requested_rewrite")
    subject = rewrite.text("subject")
    new, true = rewrite.text("target_new.str"), rewrite.text("target_true.str")
    probes = [
        Probe(prompt, new, "generality", "rephrase", foil=true, subject=subject)
        for prompt in record.texts("paraphrase_prompts")
    ]
    probes += [
        Probe(prompt, true, "locality", "neighborhood", foil=new)
        for prompt in record.texts("neighborhood_prompts")
    ]
    edit = Edit(
        rewrite.splice("prompt", subject),
        new,
        subject,
        true,
        name,
        subject_at=rewrite.occurrence("prompt", subject),
    )
    meta = {field: rewrite.get(field) for field in _KEPT if rewrite.has(field)}
    for field in ("generation_prompts", "attribute_prompts"):
        meta[field] = record.texts(field, optional=True)
    return Case(
        id=name,
        edits=(edit,),
        probes=tuple(probes),
        meta=freeze(meta),
    )


def _flat(record: Record, name: str) -> Case:
    """Map the flat form; REP's variant has `target_true`, and lists of prompts."""
    subject = record.text("subject")
    new = record.text("target_new")
    true = record.text("target_true" if record.has("target_true") else "ground_truth")
    probes = [
        Probe(prompt, new, "generality", "rephrase", foil=true, subject=subject)
        for prompt in record.one_or_more_texts("rephrase_prompt")
    ]
    kept = record.text("locality_ground_truth")
    probes += [
        Probe(prompt, kept, "locality", "locality", foil=new)
        for prompt in record.one_or_more_texts("locality_prompt")
    ]
    meta = {}
    if record.has("subject_rephrase"):
        meta["subject_rephrase"] = record.texts("subject_rephrase")
    return Case(
        id=name,
        edits=(Edit(record.text("prompt"), new, subject, true, name),),
        probes=tuple(probes),
        meta=freeze(meta),
    )
