"""MQuAKE: several edits at once, and multi-hop questions whose answer follows from them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic import Field

from errata.case import Case, Edit, Probe
from errata.config import Settings
from errata.data._base import Dataset
from errata.data._records import Record, freeze

_URL = "https://raw.githubusercontent.com/princeton-nlp/MQuAKE/main/datasets/"


class MquakeOptions(Settings):
    """How questions and hops become prompts."""

    suffix: str = Field(
        "", description="text after each question; ' The answer is:' is the usual alternative"
    )
    hops: Literal["cloze", "question"] = Field(
        "cloze", description="wording of the unedited hops: a sentence to complete, or a question"
    )


class Mquake(Dataset):
    """MQuAKE: edits scored by multi-hop questions; counterfactual (CF) or temporal (T)."""

    name = "mquake"
    title = "MQuAKE"
    paper = (
        "Zhong et al. 2023, MQuAKE: assessing knowledge editing in language models via multi-hop"
        " questions, https://arxiv.org/abs/2305.14795"
    )
    splits = ("CF-3k-v2", "CF-3k", "CF", "T")
    default = "CF-3k-v2"
    sizes: ClassVar[dict[str, int]] = {"CF-3k-v2": 3_000, "CF-3k": 3_000, "CF": 9_218, "T": 1_825}
    marks = (("case_id", "requested_rewrite", "questions", "new_single_hops", "orig"),)
    passed_over = (
        "requested_rewrite.question",
        "requested_rewrite.relation_id",
        "requested_rewrite.target_new.id",
        "requested_rewrite.target_true.id",
        "single_hops",
        "new_single_hops.answer_alias",
        "new_single_hops.cloze",
        "new_single_hops.question",
        "orig.triples",
        "orig.triples_labeled",
    )
    id_field = "case_id"
    published: ClassVar[dict[str, str]] = {
        "CF-3k-v2": _URL + "MQuAKE-CF-3k-v2.json",
        "CF-3k": _URL + "MQuAKE-CF-3k.json",
        "CF": _URL + "MQuAKE-CF.json",
        "T": _URL + "MQuAKE-T.json",
    }
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "CF-3k-v2": ("MQuAKE-CF-3k-v2.json",),
        "CF-3k": ("MQuAKE-CF-3k.json",),
        "CF": ("MQuAKE-CF.json",),
        "T": ("MQuAKE-T.json",),
    }
    Options = MquakeOptions
    options: MquakeOptions

    def case(self, record: Record, seed: int) -> Case:
        """Map one record: all rewrites form one unit, each question is one probe."""
        name = record.identity("case_id")
        edits = tuple(
            _edit(rewrite, f"{name}.{index}")
            for index, rewrite in enumerate(record.items("requested_rewrite", at_least=1))
        )
        triples = record.rows("orig.new_triples", width=3)
        edited = record.rows("orig.edit_triples", width=3)
        hops = self._unedited(record, triples, set(edited))
        answer = record.text("new_answer")
        aliases = record.texts("new_answer_alias", optional=True)
        probes = tuple(
            Probe(
                question + self.options.suffix,
                answer,
                "generality",
                "multi_hop",
                hops=hops,
                answers=aliases,
            )
            for question in record.texts("questions", at_least=1)
        )
        meta = {
            "edit_triples": edited,
            "new_triples": triples,
            "answer": record.text("answer"),
            "answer_alias": record.texts("answer_alias", optional=True),
        }
        if record.has("answer_extended"):
            meta["answer_extended"] = record.texts("answer_extended")
        return Case(id=name, edits=edits, probes=probes, meta=freeze(meta))

    def _unedited(
        self, record: Record, triples: tuple[tuple[str, ...], ...], edited: set[tuple[str, ...]]
    ) -> tuple[Edit, ...]:
        """Return the hops of the new chain that no rewrite writes, in the order of the chain."""
        hops = record.items("new_single_hops")
        labels = record.rows("orig.new_triples_labeled", width=3)
        for field, rows in (("new_triples", triples), ("new_triples_labeled", labels)):
            if len(rows) != len(hops):
                raise record.wrong(
                    f"orig.{field}", f"one triple for each of the {len(hops)} hops", list(rows)
                )
        found: list[Edit] = []
        for hop, triple, (head, _, _) in zip(hops, triples, labels, strict=True):
            if triple in edited:
                continue
            prompt = hop.text(self.options.hops)
            subject = head if head.strip() and head in prompt else None
            if self.options.hops == "question":
                prompt += self.options.suffix
            found.append(Edit(prompt, hop.text("answer"), subject))
        return tuple(found)

    def finish(self, cases: list[Case], split: str | None) -> tuple[list[Case], list[str]]:
        """Note in `meta["conflicts"]` the cases whose edits contradict what a case builds on."""
        by_fact: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(dict)
        for case in cases:
            for head, relation, tail in case.meta["edit_triples"]:
                by_fact[head, relation].setdefault(tail, []).append(case.id)
        done, count = [], 0
        for case in cases:
            against = sorted(
                {
                    other
                    for head, relation, tail in case.meta["new_triples"]
                    for value, others in by_fact.get((head, relation), {}).items()
                    if value != tail
                    for other in others
                }
            )
            count += bool(against)
            meta = {**case.meta, "conflicts": tuple(against)}
            done.append(replace(case, meta=MappingProxyType(meta)))
        if not count:
            return done, []
        return done, [
            f"{count:,} of {len(cases):,} cases build on a fact that another case edits otherwise;"
            " harmless one case at a time, not when cases are edited together"
        ]


def _edit(rewrite: Record, name: str) -> Edit:
    subject = rewrite.text("subject")
    return Edit(
        prompt=rewrite.splice("prompt", subject),
        target=rewrite.text("target_new.str"),
        subject=subject,
        target_true=rewrite.text("target_true.str"),
        id=name,
        subject_at=rewrite.occurrence("prompt", subject),
    )
