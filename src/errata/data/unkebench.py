"""Long answers: UnKEBench's counterfactual paragraphs, and EditEverything's texts of many kinds."""

from __future__ import annotations

from typing import ClassVar

from errata.case import Case, Edit, Probe
from errata.data._base import Dataset
from errata.data._records import Record, freeze


class UnKEBench(Dataset):
    """UnKEBench: a question with a long answer, a paraphrase, and questions about its parts."""

    name = "unkebench"
    title = "UnKEBench"
    paper = (
        "Deng et al. 2024, UnKE: unstructured knowledge editing in large language models,"
        " https://arxiv.org/abs/2405.15349; EditEverything in Jiang et al. 2025, AnyEdit,"
        " https://arxiv.org/abs/2502.05628"
    )
    splits = ("unke", "everything")
    default = "unke"
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "unke": ("unkebench_v2.json", "final_data_v2.json", "final_data_v3.json"),
        "everything": ("editevery.json",),
    }
    marks = (("question", "para_question", "answer", "sub_question", "sub_answer"),)
    also_read = (("question", "answer", "category"),)
    id_field = "id"

    def case(self, record: Record, seed: int) -> Case:
        """Map one record; the questions name no subject.

        Raises:
            DataError: If questions about parts and their answers are not as many.
        """
        name = record.identity("id") if record.has("id") else record.key
        answer = record.text("answer").strip()
        probes = []
        if record.has("para_question"):
            probes.append(Probe(record.text("para_question"), answer, "generality", "rephrase"))
        if record.has("sub_question"):
            asked, told = record.texts("sub_question"), record.texts("sub_answer")
            if len(asked) != len(told):
                raise record.wrong("sub_answer", f"{len(asked)} texts", list(told))
            probes += [
                Probe(question, part.strip(), "generality", "part")
                for question, part in zip(asked, told, strict=True)
            ]
        meta = {"domain": record.optional_text("category")}
        return Case(
            name, (Edit(record.text("question"), answer, id=name),), tuple(probes), freeze(meta)
        )
