"""Updates in rounds: against single updates of a copy whose weights were changed by hand."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from tests.locate.samples import build
from tests.nets.samples import TRAINED
from torch import Tensor

from errata.case import Edit
from errata.editors import rounds as module
from errata.editors.base import Editor
from errata.inspection.advice import advice
from errata.model.lm import LM
from errata.patch import Patch
from errata.patch.deltas import weight_deltas

Make = Callable[..., Editor]

CLOSE = 1e-9
"""Float64, relative to the largest entry."""

EDITS = [Edit("Ada lives in", "Rome", "Ada"), Edit("Ben lives in", "Oslo", "Ben")]


@pytest.fixture(scope="module")
def lm() -> LM:
    return build("gpt2")


def plain(make: Make, name: str, **settings: Any) -> Any:
    joint = {"joint": "sum"} if name in ("ibke", "mend") else {}
    return make(name, matrices="out", scale=0.3, **joint, **settings)


def twin(make: Make, lm: LM, name: str, first: Any, **settings: Any) -> Any:
    """Return an editor with the same networks and other settings."""
    other = plain(make, name, **settings)
    other.prepare = lambda lm: None
    first.prepare(lm)
    other.adopt(lm, first.network(lm))
    return other


def probability(lm: LM, edit: Edit) -> float:
    row = lm.row_of(edit)
    with torch.no_grad():
        logits = lm.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return float(sum(logits[p, i] for p, i in zip(row.positions, row.labels, strict=True)).exp())


def deltas(lm: LM, patch: Patch) -> dict[str, Tensor]:
    return weight_deltas(lm, patch.changes)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        float((a[k] - b[k]).abs().max()) <= CLOSE * float(b[k].abs().max()) for k in a
    )


@pytest.mark.parametrize("name", TRAINED)
def test_every_round_is_an_update_of_the_model_as_it_is_then(name: str, lm: LM, make: Make) -> None:
    single = plain(make, name)
    network = single.network
    several = twin(make, lm, name, single, rounds=3, enough=1.0)
    # by hand: the update is added to the weights of a copy, and the copy edited anew
    changed = LM(deepcopy(lm.model), lm.tokenizer, name="copy")
    total: dict[str, Tensor] = {}
    after: list[tuple[float, dict[str, Tensor]]] = []
    for _ in range(3):
        own = twin(make, lm, name, single)
        own.network = lambda _: network(lm)
        for path, delta in deltas(changed, own.edit_one(changed, EDITS[:1])).items():
            total[path] = total.get(path, 0) + delta
            with torch.no_grad():
                dict(changed.model.named_parameters())[path].add_(delta)
        after.append((probability(changed, EDITS[0]), dict(total)))
    found = several.edit_one(lm, EDITS[:1])
    likely, want = max(after, key=lambda one: one[0])
    assert same(deltas(lm, found), want)
    with found.applied(lm):
        assert probability(lm, EDITS[0]) == pytest.approx(likely, rel=1e-6)


def test_an_edit_leaves_when_its_answer_is_probable_enough(
    lm: LM, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = plain(make, "ibke")
    several = twin(make, lm, "ibke", single, rounds=4, enough=0.5)
    groups = [[edit] for edit in EDITS]
    once = [deltas(lm, patch) for patch in single.edit(lm, groups)]
    told = iter([[0.4, 0.6], [0.7]])  # the second edit leaves after a round, the first after two
    asked: list[int] = []

    def chances(lm: LM, groups: Any, patches: Any) -> list[float]:
        asked.append(len(groups))
        return next(told)

    monkeypatch.setattr(module, "_chances", chances)
    first, second = (deltas(lm, patch) for patch in several.edit(lm, groups))
    assert asked == [2, 1]
    assert same(second, once[1])
    assert not same(first, once[0])


def test_the_most_probable_round_is_kept(
    lm: LM, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = plain(make, "mend")
    several = twin(make, lm, "mend", single, rounds=3, enough=0.5)
    told = iter([[0.3], [0.1], [0.2]])
    monkeypatch.setattr(module, "_chances", lambda lm, groups, patches: next(told))
    found, once = (e.edit_one(lm, EDITS[:1]) for e in (several, single))
    assert same(deltas(lm, found), deltas(lm, once))


def test_rounds_go_on_from_an_earlier_patch(lm: LM, make: Make) -> None:
    single = plain(make, "ibke")
    several = twin(make, lm, "ibke", single, rounds=2, enough=1.0)
    earlier = single.edit_one(lm, EDITS[1:])
    found = several.edit_one(lm, EDITS[:1], earlier)
    assert set(found.edits) == set(EDITS)
    by_hand = single.edit_one(lm, EDITS[:1], earlier)
    with by_hand.applied(lm):
        one = probability(lm, EDITS[0])
    again = single.edit_one(lm, EDITS[:1], by_hand)
    with again.applied(lm):
        two = probability(lm, EDITS[0])
    want = again if two > one else by_hand
    assert same(deltas(lm, found), deltas(lm, want))


@pytest.mark.parametrize("name", ["ibke", "mend"])
def test_the_ridge_wants_what_the_rounds_of_each_edit_give(
    name: str, lm: LM, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    own = module.in_rounds

    def counted(lm: LM, groups: Any, *more: Any) -> Any:
        calls.append(len(groups))
        return own(lm, groups, *more)

    monkeypatch.setattr("errata.editors.base_trained.in_rounds", counted)
    edits = [Edit(f"{n} lives in", "Rome", n) for n in ("Ada", "Ben", "Cleo", "Dan")]
    one, several = (
        make(name, matrices="out", joint="ridge", rounds=n, enough=1.0).edit_one(lm, edits)
        for n in (1, 3)
    )
    assert calls == [4]
    assert not same(deltas(lm, one), deltas(lm, several))


def test_an_edit_that_was_missed_is_advised_more_rounds(lm: LM, make: Make) -> None:
    editor = plain(make, "mend", rounds=2)
    editor.prepare(lm)
    missed = {"says_after": " London", "tokens": 1, "right": 0}
    first, *_ = advice(lm, editor, EDITS[0], missed, group=1)
    assert first.endswith("updates, each of new gradients: --set rounds=8 --set scale=0.15")
