"""KnowEdit: EasyEdit's collection of benchmarks, with portability and locality by name."""

from __future__ import annotations

from typing import ClassVar

from errata.case import Case, Edit, Probe
from errata.data._base import Dataset
from errata.data._questions import answers_of, named_questions
from errata.data._records import Record, freeze


class KnowEdit(Dataset):
    """KnowEdit: ZsRE, WikiData (recent, counterfactual) and WikiBio in EasyEdit's common form."""

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
    }
    marks = (
        ("prompt", "target_new", "locality"),
        ("prompt", "target_new", "portability"),
        ("text", "labels", "locality"),
    )

    def case(self, record: Record, seed: int) -> Case:
        """Map one record; WikiBio's `concept`, `text` and `labels` are subject, prompt, target."""
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
