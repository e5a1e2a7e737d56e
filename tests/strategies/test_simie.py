"""SimIE: edits side by side, joined in closed form; order, turns and removal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors.conftest import *  # noqa: F403 -- the fixtures that build small editors
from tests.editors.joint_samples import SETTINGS, Make, Tiny
from tests.locate.samples import EDITS
from tests.patch.test_ridge_changes import same
from torch import Tensor

from errata.editors.base import Editor
from errata.model.lm import LM
from errata.patch import Patch, Ridge
from errata.patch.deltas import weight_deltas
from errata.patch.removal import remove
from errata.strategies import simie
from errata.strategies.simie import inputs_of

EXACT = 1e-10
TOGETHER = 1e-7
"""Hosts find values of several edits in one pass; Adam amplifies how that rounds."""
HOSTS = ["rome", "memit", "alphaedit", "rect", "prune"]


@pytest.fixture(autouse=True)
def _cache_of_its_own(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(cache_folder))


@pytest.fixture
def paired(make: Make) -> Callable[..., Editor]:
    def build(host: str, **more: Any) -> Editor:
        layers = {"layer": 1} if host == "rome" else {"layers": (0, 1)}
        own = {**SETTINGS.get(host, {}), **layers, "lr": 0.2, "steps": 4, "stop_loss": 0.0}
        return make(f"{host}+simie", **{**own, "simie_ridge": 0.5, **more})

    return build


def total(lm: LM, patch: Patch) -> dict[str, Tensor]:
    return weight_deltas(lm, patch.changes)


def apart(lm: LM, one: Patch, other: Patch) -> float:
    a, b = total(lm, one), total(lm, other)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / b[name].norm()) for name in b)


@pytest.mark.parametrize("host", ["rome", "memit"])
def test_it_is_the_recursion_of_ideal_edits(
    host: str, tiny: Tiny, make: Make, paired: Callable[..., Editor]
) -> None:
    """`P += K K^T; W += (What - W) K K^T P^-1`, with the host's own single edits."""
    lm = tiny("llama")
    pair = paired(host)
    found = total(lm, pair.edit_one(lm, EDITS[:3]))
    single = make(host, **{
        key: value for key, value in pair.config.model_dump().items() if not key.startswith("simie")
    })  # fmt: skip
    alone = [total(lm, patch) for patch in single.edit(lm, [[edit] for edit in EDITS[:3]])]
    for name, delta in found.items():
        site = next(lm.site(n) for n in range(lm.n_layers) if lm.site(n).weight == name)
        P = 0.5 * torch.eye(site.d_in, dtype=delta.dtype)
        W = torch.zeros(site.d_out, site.d_in, dtype=delta.dtype)
        for edit, deltas in zip(EDITS, alone, strict=False):
            (K,) = inputs_of(lm, edit, [site])
            gram = K.T @ K
            P = P + gram
            W = W + (deltas[name] - W) @ gram @ torch.linalg.inv(P)
        torch.testing.assert_close(delta, W, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("host", HOSTS)
def test_neither_order_nor_turns_matter(
    host: str, tiny: Tiny, paired: Callable[..., Editor]
) -> None:
    lm = tiny("gpt2")
    pair = paired(host)
    at_once = pair.edit_one(lm, EDITS[:3])
    assert all(isinstance(change, Ridge) for change in at_once.changes)
    in_turns = None
    for edit in EDITS[:3]:
        in_turns = pair.edit_one(lm, [edit], in_turns)
    assert in_turns is not None
    assert len(in_turns.changes) == len(at_once.changes)
    assert apart(lm, in_turns, at_once) <= TOGETHER
    assert apart(lm, pair.edit_one(lm, EDITS[2::-1]), at_once) <= TOGETHER


def test_an_edit_removed_is_an_edit_never_made(tiny: Tiny, paired: Callable[..., Editor]) -> None:
    """To the bit where edits are made one after another."""
    lm = tiny("gpt2")
    pair = paired("memit")

    def sequence(edits: list) -> Patch:
        patch = None
        for edit in edits:
            patch = pair.edit_one(lm, [edit], patch)
        assert patch is not None
        return patch

    whole = sequence(EDITS[:3])
    for out in range(3):
        left = [edit for number, edit in enumerate(EDITS[:3]) if number != out]
        same(remove(whole, [out + 1]), sequence(left))
    joint = remove(pair.edit_one(lm, EDITS[:3]), [2])
    assert apart(lm, joint, pair.edit_one(lm, [EDITS[0], EDITS[2]])) <= TOGETHER


def test_a_small_ridge_makes_the_update_of_a_lone_edit(
    tiny: Tiny, make: Make, paired: Callable[..., Editor]
) -> None:
    """lambda -> 0 with one edit: `W K = What K` at every token of its text."""
    lm = tiny("gpt2")
    pair = paired("rome", simie_ridge=1e-9)
    (delta,) = total(lm, pair.edit_one(lm, EDITS[:1])).values()
    host = make("rome", layer=1, lr=0.2, steps=4, stop_loss=0.0)
    (ideal,) = total(lm, host.edit_one(lm, EDITS[:1])).values()
    (K,) = inputs_of(lm, EDITS[0], [lm.site(1)])
    torch.testing.assert_close(K @ delta, K @ ideal, rtol=1e-4, atol=1e-6)


def test_beside_other_changes(tiny: Tiny, make: Make, paired: Callable[..., Editor]) -> None:
    """An earlier patch of another kind is contained, and does not change what edits are."""
    lm = tiny("gpt2")
    other = make("ft", layers=(1,)).edit_one(lm, EDITS[3:])
    pair = paired("rome")
    both = pair.edit_one(lm, EDITS[:1], other)
    assert both.changes[0] is other.changes[0]
    same(Patch(both.changes[1:]), Patch(pair.edit_one(lm, EDITS[:1]).changes))


def test_the_weight_goes_by_the_width_of_the_model(
    tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2")
    asked: Any = make("rome+simie", layer=1, simie_ridge=3.0)
    own: Any = make("rome+simie", layer=1)
    assert (asked.ridge(lm), own.ridge(lm)) == (3.0, simie.SMALL)
    monkeypatch.setattr(simie, "NARROW", 1)
    assert (asked.ridge(lm), own.ridge(lm)) == (3.0, 1e4)
