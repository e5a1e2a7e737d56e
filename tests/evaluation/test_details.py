"""`details`: records hold probability and rank of every token that is scored."""

from __future__ import annotations

import math

import torch

from errata.evaluation import evaluate
from errata.evaluation.questioning import _details
from errata.patch import Patch
from tests.evaluation.conftest import make_case
from tests.evaluation.stubs import Planted


def test_probability_and_rank_are_those_of_a_plain_pass(lm):
    case, editor = make_case(3), Planted(3.0)
    questions = evaluate(lm, editor, [case], details=True).records[0]["questions"]
    patch = editor.edit_one(lm, case.edits)

    def chances(row, under):
        with under.applied(lm), torch.no_grad():
            logits = lm.model(torch.tensor([row.ids])).logits[0, list(row.positions)]
        return logits.softmax(-1)

    assert {q["kind"] for q in questions} == {"reliability", "generality", "locality"}
    for asked, entry in zip([*case.edits, *case.probes], questions, strict=True):
        row = lm.row_of(asked)
        found = chances(row, patch)
        labels = torch.tensor(row.labels)
        if entry["kind"] == "locality":  # what the unedited model says in place of the target
            labels = chances(row, Patch()).argmax(-1)
        if entry.get("hops", {}).get("edited"):
            continue  # asked under a patch of its own
        own = found.gather(1, labels[:, None])
        assert entry["rank"] == (1 + (found > own).sum(-1)).tolist()
        for said, wanted in zip(entry["probability"], own[:, 0].tolist(), strict=True):
            assert math.isclose(said, wanted, rel_tol=1e-4, abs_tol=1e-7)


def test_records_are_as_before_without_it(lm):
    case = make_case(3)
    plain, full = (
        evaluate(lm, Planted(3.0), [case], details=given).records[0]["questions"]
        for given in (False, True)
    )
    gone = ("probability", "rank")
    assert [{k: v for k, v in q.items() if k not in gone} for q in full] == plain


def test_what_is_no_number_is_null():
    found = _details([float("nan"), 0.0], [7, 0])
    assert found == {"probability": [None, 1.0], "rank": [None, 1]}
