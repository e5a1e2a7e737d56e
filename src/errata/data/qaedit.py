"""QAEdit: questions of real data sets that models get wrong, from "The Mirage of Model Editing"."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from errata.case import Case, Edit, Probe
from errata.config import Settings
from errata.data._base import HubDataset
from errata.data._records import Record, freeze

_MARK = re.compile(r"[\s*†‡]+$")


class QAEditOptions(Settings):
    """Which of the locality questions are asked."""

    locality: Literal["all", "first"] = Field(
        "all",
        description="which of a record's five locality questions are asked; the published protocol"
        " asks the first",
    )


class QAEdit(HubDataset):
    """QAEdit: real questions (NQ, TriviaQA, SimpleQA), a rephrasing and five locality questions."""

    name = "qaedit"
    title = "QAEdit"
    paper = (
        "Yang et al. 2025, The mirage of model editing: revisiting evaluation in the wild,"
        " https://arxiv.org/abs/2502.11177"
    )
    splits = ("all",)
    default = "all"
    repository = "WenDingY/QAEdit"
    names: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("QAEdit.json", "qaedit.json")}
    marks = (("prompt", "target", "rephrase", "locality"),)
    id_field = "id"
    Options = QAEditOptions
    options: QAEditOptions

    def case(self, record: Record, seed: int) -> Case:
        """Map one record; questions are asked as they are written, without a suffix."""
        source = record.optional_text("source")
        name = record.identity("id") if record.has("id") else record.key
        if source is not None:  # ids are unique per source only
            name = f"{source}-{name}"
        subject = record.optional_text("subject")
        target = _plain(record.text("target"))
        edit = Edit(record.text("prompt"), target, subject, id=name)
        asked = record.items("locality") if record.has("locality") else []
        if self.options.locality == "first":
            record.leave_out("locality questions behind the first", len(asked[1:]))
        kept = asked if self.options.locality == "all" else asked[:1]
        probes = [
            Probe(record.text("rephrase"), target, "generality", "rephrase", subject=subject),
            *(Probe(e.text("loc"), e.text("loc_ans"), "locality", "locality") for e in kept),
        ]
        return Case(name, (edit,), tuple(probes), freeze({"source": source}))


def _plain(answer: str) -> str:
    """Return an answer without the marks of footnotes and white space around it."""
    return _MARK.sub("", answer).strip() or answer
