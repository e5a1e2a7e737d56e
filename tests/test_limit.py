"""The cost model of the benchmarks against torch's own count of operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks import limit
from torch.utils.flop_counter import FlopCounterMode

from errata.case import Edit
from errata.data.corpus import Corpus
from errata.editors import get_editor
from errata.locate.contexts import given_contexts
from errata.locate.moments import count_moments
from errata.testing.models import EDITS
from tests.locate.samples import build

BARE = given_contexts([])
OWN = {"contexts": ("{}",), "steps": 3, "stop_loss": 0.0, "moments_samples": 50, "ridge": 1e-2,
       "sink_prefix": "off"}  # fmt: skip


def counted(call: Any) -> float:
    """What torch counts of matrix products and attention, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_row_through_all_blocks(name: str) -> None:
    lm = build(name, "float32")
    row = lm.row("Who is the mayor of Berlin")
    cost = limit.Costs.of(lm)
    wanted = counted(lambda: lm.score([lm.row("Who is the mayor of Berlin", "Anna")]))
    mine = cost.run(len(row.ids), range(lm.n_layers)) + cost.head
    # torch counts attention between all pairs of tokens, the model only those that are seen
    assert 0.8 < mine / wanted < 1.05


# prompts that begin with the subject: no row is padded, and the model counts no padding
@pytest.mark.parametrize("edit", [EDITS[1], Edit("France has its mayor in", "Rome", "France")])
def test_an_edit_of_rome_and_of_memit(edit: Edit, tmp_path: Any) -> None:
    lm = build("llama", "float32")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(f"The mayor of {t} lives in Rome." for t in ("Oslo", "Lima") * 25))
    for name, layers, bill in (
        ("rome", {"layer": 1}, limit.rome(lm, [edit], BARE, 1, 3)),
        ("memit", {"layers": (1,)}, limit.memit(lm, [edit], BARE, (1,), 3)),
    ):
        editor = get_editor(name, {**OWN, **layers, "moments_text": str(texts)})
        editor.edit_one(lm, [edit])  # what is found out once per model
        wanted = counted(lambda e=editor: e.edit_one(lm, [edit]))
        mine = bill.total - bill.parts.pop("solves", 0.0)  # torch does not count those
        assert 0.6 < mine / wanted <= 1.05, (name, wanted, bill.parts)


def test_texts_and_moments() -> None:
    lm = build("llama", "float32")
    wanted = counted(lambda: lm.generate(["Who is the mayor of Berlin"], 4))
    assert 0.7 < limit.generation(lm, ["Who is the mayor of Berlin"], 4).total / wanted < 1.4
    texts = ("The mayor of Oslo lives in Rome and works there. " * 3,)
    wanted = counted(lambda: count_moments(lm, Corpus("texts", texts, ""), [1], 64))
    assert 0.4 < limit.moments(lm, texts, [1], 64).total / wanted < 1.1


def test_the_rate_is_that_of_products() -> None:
    assert limit.rate(build("llama", "float32"), 8, repeats=1) > 0
    assert torch.is_grad_enabled()
