"""zsRE: question answering with rephrased questions, in the two forms that MEND published.

Two forks of the first form are read as well: EasyEdit's, with a `portability` object, and
UltraEdit's, which calls the new answer `ans`.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from errata.case import Case, Edit, Probe
from errata.config import Settings
from errata.data._base import Dataset, NotUsed
from errata.data._questions import named_questions
from errata.data._records import Record, freeze


class ZsreOptions(Settings):
    """How a question becomes a prompt."""

    suffix: str = Field(
        " The answer is: ",
        description="text after the edit question and its rephrasing; the trailing space is as"
        " published and stands besides the leading space of the answer",
    )
    target: Literal["alt", "answer"] = Field(
        "alt",
        description="what is edited in: the alternative answer (MEND, IBKE), or the first true"
        " answer (ROME, MEMIT)",
    )


class Zsre(Dataset):
    """zsRE with MEND's alternatives, rephrased questions and Natural Questions as locality."""

    name = "zsre"
    title = "zsRE"
    paper = (
        "Levy et al. 2017, Zero-shot relation extraction via reading comprehension,"
        " https://arxiv.org/abs/1706.04115; as edited by Mitchell et al. 2022 (MEND),"
        " https://arxiv.org/abs/2110.11309"
    )
    splits = ("eval", "train")
    default = "eval"
    sizes: ClassVar[dict[str, int]] = {"eval": 19_086, "train": 163_196}
    marks = (
        ("src", "rephrase", "alt", "loc", "loc_ans"),
        ("src", "rephrase", "ans", "loc", "loc_ans"),
        ("input", "alternatives", "filtered_rephrases"),
    )
    passed_over = ("cond", "output.provenance")
    mapping = 2
    published: ClassVar[dict[str, str]] = {
        "eval": "https://rome.baulab.info/data/dsets/zsre_mend_eval.json",
        "train": "https://memit.baulab.info/data/dsets/zsre_mend_train.json",
    }
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "eval": ("zsre_mend_eval.json", "structured_zeroshot-dev-new_annotated_final.jsonl"),
        "train": (
            "zsre_mend_train.json",
            "zsre_mend_train_10000.json",
            "structured_zeroshot-train-new_annotated_final.jsonl",
        ),
    }
    Options = ZsreOptions
    options: ZsreOptions

    def case(self, record: Record, seed: int) -> Case:
        """Map one record of either form."""
        if record.has("input"):
            return self._structured(record, seed)
        return self._mend(record)

    def _mend(self, record: Record) -> Case:
        answers = record.texts("answers", optional=True)
        true = answers[0] if answers else record.optional_text("pred")
        if self.options.target == "answer":
            record.texts("answers", at_least=1)
            record.has("alt")  # known, and not what is edited in
            target = answers[0]
        else:
            target = record.text("alt" if not record.has("ans") else "ans")
        subject = record.text("subject")
        name = record.key
        suffix = self.options.suffix
        return Case(
            id=name,
            edits=(Edit(record.text("src") + suffix, target, subject, true, name),),
            probes=(
                Probe(
                    record.text("rephrase") + suffix,
                    target,
                    "generality",
                    "rephrase",
                    subject=subject,
                ),
                *self._portability(record),
                Probe(record.text("loc"), record.text("loc_ans"), "locality", "NQ"),
            ),
            meta=freeze({"prediction": record.optional_text("pred"), "answers": answers}),
        )

    def _portability(self, record: Record) -> list[Probe]:
        """Return the questions whose answers follow from the alternative, in the edit's wording."""
        found = named_questions(record, "portability", "generality")
        if self.options.target == "answer":
            record.leave_out("portability questions, which follow from `alt`,", len(found))
            return []
        return [replace(probe, prompt=probe.prompt + self.options.suffix) for probe in found]

    def _structured(self, record: Record, seed: int) -> Case:
        question = record.text("input")
        alternatives = record.texts("alternatives")
        rephrases = [text for text in record.texts("filtered_rephrases") if text != question]
        answers = tuple(output.text("answer") for output in record.items("output"))
        if self.options.target == "answer":
            alternatives = answers[:1]
        if not alternatives or not rephrases:
            raise NotUsed("rows without alternatives or rephrased questions")
        name = record.key
        # drawn per record, so that neither order nor limit changes what a record becomes
        draw = random.Random(f"{seed}:{name}")
        target, rephrase = draw.choice(alternatives), draw.choice(rephrases)
        true = answers[0] if answers else record.optional_text("prediction")
        suffix = self.options.suffix
        return Case(
            id=name,
            edits=(Edit(question + suffix, target, None, true, name),),
            probes=(Probe(rephrase + suffix, target, "generality", "rephrase"),),
            meta=freeze({"prediction": record.optional_text("prediction"), "answers": answers}),
        )
