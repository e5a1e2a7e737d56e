"""CounterFact: counterfactual edits, in ROME's nested form and EasyEdit's flat form."""

from __future__ import annotations

from typing import ClassVar

from errata.case import Case, Edit, Probe
from errata.config import Settings
from errata.data._base import Dataset
from errata.data._questions import named_questions
from errata.data._records import Record, freeze
from errata.data._relations import RelationOptions, check_wanted

SUBJECTS = "blank rephrased subjects"
"""What is left out of REP's lists of other names."""

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
    sizes: ClassVar[dict[str, int]] = {
        "all": 21_919, "train": 10_000, "val": 1_919, "edit": 10_000,
    }  # fmt: skip
    marks = (
        ("case_id", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"),
        ("case_id", "target_new", "ground_truth", "rephrase_prompt", "locality_prompt"),
        ("case_id", "target_new", "target_true", "rephrase_prompt", "locality_prompt"),
    )
    also_read = (
        (
            "case_id",
            "target_new",
            "target_true",
            "rephrase_prompt",
            "locality_prompt",
            "subject_rephrase",
        ),
    )
    passed_over = ("pararel_idx", "rephrase_target")
    id_field = "case_id"
    mapping = 2
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
    Options: ClassVar[type[Settings]] = RelationOptions

    def case(self, record: Record, seed: int) -> Case:
        """Map one record; a `requested_rewrite` marks the nested form."""
        assert isinstance(self.options, RelationOptions)
        check_wanted(record, self.options)
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
    probes += named_questions(record, "portability", "generality")
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
    probes += named_questions(record, "portability", "generality")
    meta = {}
    if record.has("subject_rephrase"):
        meta["subject_rephrase"] = record.visible_texts("subject_rephrase", SUBJECTS)
    return Case(
        id=name,
        edits=(Edit(record.text("prompt"), new, subject, true, name),),
        probes=tuple(probes),
        meta=freeze(meta),
    )
