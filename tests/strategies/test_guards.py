"""ENCORE and LyapLock: what each guard promises, and the equations that it solves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors.conftest import *  # noqa: F403 -- the fixtures that build small editors
from tests.editors.joint_samples import Make, Tiny, built, deltas, distance
from tests.locate.samples import EDITS
from tests.patch.test_ridge_changes import same
from torch import Tensor

from errata.case import Edit
from errata.editors.base_joint import JointEditor, Write
from errata.errors import PatchError
from errata.model.lm import LM
from errata.patch import LowRank, Patch
from errata.strategies import lyaplock
from errata.strategies.lyaplock import Queue, damage, locked

EXACT = 1e-10


@pytest.fixture(autouse=True)
def _cache_of_its_own(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(cache_folder))


def oriented(lm: LM, layer: int, delta: Tensor) -> Tensor:
    return delta.T if lm.site(layer).transposed else delta


# ---------------------------------------------------------------------- ENCORE


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_update_is_weighed_by_its_size(
    kind: str, tiny: Tiny, make: Make, seen: list[tuple[str, Any]]
) -> None:
    """`D = R K^T (lambda C + K K^T + lambda_n I)^-1`, block by block, with keys as rows."""
    lm = tiny(kind)
    pair = built(make, "memit+encore", encore_norm=3.0, encore_stop=None)
    patch = pair.edit_one(lm, EDITS[:3])
    plain = built(make, "memit")
    plain.prepare(lm)
    for what, write in seen:
        if what == "write":
            assert isinstance(write, Write)
            factor = plain.prepared(lm).moments[write.layer]
            assert factor is not None
            system = 2.0 * factor.matrix() + write.keys.T @ write.keys
            system.diagonal().add_(3.0)
            expected = write.residual.T @ write.keys @ torch.linalg.inv(system)
            found = oriented(lm, write.layer, deltas(lm, patch)[write.site.weight])
            assert distance(found, expected) < EXACT


def test_more_weight_makes_smaller_updates_and_none_makes_the_hosts(tiny: Tiny, make: Make) -> None:
    lm = tiny("llama")
    host = built(make, "memit_seq").edit_one(lm, EDITS[:3])
    off = built(make, "memit_seq+encore", encore_norm=0.0, encore_stop=None).edit_one(lm, EDITS[:3])
    same(off, host)
    sizes = [
        sum(float(delta.norm()) for delta in deltas(lm, patch).values())
        for patch in (
            built(make, "memit_seq+encore", encore_norm=n, encore_stop=None).edit_one(lm, EDITS[:3])
            for n in (0.0, 1.0, 10.0, 100.0)
        )
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.5 * sizes[0]


def test_values_stop_where_the_pair_says(
    tiny: Tiny, make: Make, seen: list[tuple[str, Any]]
) -> None:
    lm = tiny("gpt2")
    edits = [
        Edit("I live in France", "is", subject="France"),
        Edit("Who is the mayor of Berlin", "of", subject="Berlin"),
    ]
    for stop in (1, None):
        own = {"encore_stop": stop, "steps": 80, "lr": 0.1, "clamp": 1e9, "kl_factor": 0.0}
        built(make, "memit+encore", **own).edit_one(lm, edits)
    early, late = [found.updates for what, (_, found) in
                   [e for e in seen if e[0] == "value"]]  # fmt: skip
    assert late == [79, 79]
    assert max(early) < 79


# ---------------------------------------------------------------------- LyapLock


def released(
    turns: list[tuple[Tensor, Tensor]], C: Tensor, W0: Tensor, w: float, alpha: float
) -> tuple[list[Tensor], list[float], list[float]]:
    """The released recursion as it stands there, keys as columns: weights, queues and damages."""
    v0k0, v0v0 = W0 @ C, W0 @ C @ W0.T
    W, V, base, Z, a, floor, cache = W0, 1.0, None, 0.0, 0.0, 0.0, None
    weights, queues, damages = [], [], []
    for count, (R, K) in enumerate(turns):
        if count == 0:
            left = R @ K.T + w * (v0k0 - W @ C)
            A = K @ K.T + w * C
        else:
            left = V * (R @ K.T) + a * Z * w * (v0k0 - W @ C)
            left = left + V * (cache[0] - W @ cache[1])  # type: ignore[index]
            A = V * K @ K.T + a * Z * w * C + V * cache[1]  # type: ignore[index]
        W = W + left @ torch.linalg.solve(A, torch.eye(len(A)).double()).T
        D = float((C @ W.T @ W).trace() - 2 * (v0k0 @ W.T).trace() + v0v0.trace())
        if base is None:
            base = D
            a, Z, floor = (alpha * base) ** -0.5, (alpha * base) ** 0.5, (alpha * base) ** 0.5
        Z = max(Z + a * (D - alpha * base), floor)
        v = W @ K
        more = (v @ K.T, K @ K.T)
        cache = more if cache is None else (cache[0] + more[0], cache[1] + more[1])
        weights.append(W)
        queues.append(a * Z)
        damages.append(D)
    return weights, queues, damages


@pytest.mark.parametrize("alpha", [0.5, 1e4])
def test_it_is_the_released_recursion_and_its_promise_holds(alpha: float) -> None:
    g = torch.Generator().manual_seed(0)
    d, f, w = 5, 9, 3.0

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).double()

    X, W0 = normal(40, f), normal(d, f)
    C = X.T @ X / 40
    turns = [(normal(d, 3) * (1 + t), normal(f, 3)) for t in range(8)]
    weights, queues, damages = released(turns, C, W0, w, alpha)
    queue, past = Queue(), torch.zeros(f, f).double()
    change, answers = torch.zeros(d, f).double(), torch.zeros(d, f).double()
    for (R, K), W, level in zip(turns, weights, queues, strict=True):
        system = queue.level * w * C + past + K @ K.T
        whole = ((change @ K + R) @ K.T + answers) @ torch.linalg.inv(system)
        change = change + locked(R.T, K.T, C, w, queue, past, change)
        assert distance(change, whole) < EXACT  # all of it is solved for anew, every turn
        assert distance(change, W - W0) < EXACT
        queue = queue.after(change, K @ K.T, C, alpha)
        assert queue.level == pytest.approx(level, rel=EXACT)
        answers, past = answers + change @ K @ K.T, past + K @ K.T
    mean = sum(damages) / len(damages)
    assert mean <= alpha * damages[0] * (1 + (queues[-1] - 1) / len(turns)) * (1 + EXACT)
    assert (max(queues) > 1) is (alpha < 1)


def in_turns(pair: JointEditor, lm: LM, turns: int = 4) -> list[Patch]:
    made: list[Patch] = []
    for turn in range(turns):
        made.append(pair.edit_one(lm, [EDITS[turn % len(EDITS)]], made[-1] if made else None))
    return made


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_turn_solves_for_all_edits(
    kind: str, tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny(kind)
    solved: list[tuple[Any, ...]] = []

    def keep(*told: Any) -> Tensor:
        solved.append(told)
        return locked(*told)

    monkeypatch.setattr(lyaplock, "locked", keep)
    pair = built(make, "memit+lyaplock", layers=(1,), conflicts="keep")
    first, second, third, _ = in_turns(pair, lm)
    host = built(make, "memit", layers=(1,)).edit_one(lm, EDITS[:1])
    same(Patch(first.changes), Patch(host.changes))
    (residual, keys, C, w, queue, past, change) = solved[1]
    assert w == 2.0
    assert float(past.trace()) > 0
    now = [whole_of(lm, patch) for patch in (first, second, third)]
    assert distance(change, now[1]) < EXACT
    earlier = [keys_of(patch, 1) for patch in (first, second)]
    last = earlier[1][len(earlier[0]) :]
    answers = now[0] @ earlier[0].T @ earlier[0] + now[1] @ last.T @ last
    system = queue.level * w * C + past + keys.T @ keys
    whole = ((now[1] @ keys.T + residual.T) @ keys + answers) @ torch.linalg.inv(system)
    assert distance(now[2], whole) < EXACT


def whole_of(lm: LM, patch: Patch) -> Tensor:
    """Return all that a patch of one matrix adds to it, `d x f`."""
    (delta,) = deltas(lm, patch).values()
    return oriented(lm, 1, delta)


def keys_of(patch: Patch, layer: int) -> Tensor:
    return patch.state[f"memory.{layer}.keys"]


def test_less_damage_is_allowed_less_is_done(tiny: Tiny, make: Make) -> None:
    lm = tiny("llama")
    done = []
    for alpha in (1e-3, 60.0):
        pair = built(make, "memit+lyaplock", layers=(1,), lyaplock_alpha=alpha, conflicts="keep")
        last = in_turns(pair, lm)[-1]
        factor = pair.prepared(lm).moments[1]
        assert factor is not None
        done.append(damage(whole_of(lm, last), factor.matrix()))
        level = float(last.state["memory.1.queue"][0])
        assert (level > 1) is (alpha < 1)
    assert done[0] < done[1]


def test_it_goes_on_from_disk_to_the_same_bits(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("llama")
    pair = built(make, "memit+lyaplock", conflicts="keep")
    made = in_turns(pair, lm, 2)
    loaded = Patch.load(made[0].save(tmp_path / "one"))
    same(pair.edit_one(lm, [EDITS[1]], loaded), made[1])
    broken = {k: v for k, v in made[0].state.items() if not k.endswith(".aims")}
    with pytest.raises(PatchError, match="contradicts itself"):
        pair.edit_one(lm, [EDITS[1]], Patch(made[0].changes, state=broken))


def test_what_other_editors_did_is_no_damage(tiny: Tiny, make: Make) -> None:
    """It stays as it is, and only what this one adds is counted and weighed."""
    lm = tiny("gpt2")
    site = lm.site(1)
    g = torch.Generator().manual_seed(1)
    B, A = (torch.randn(*shape, generator=g).double()
            for shape in ((site.d_out, 1), (1, site.d_in)))  # fmt: skip
    B *= 100
    other = Patch((LowRank(site.path, B, A),))
    pair = built(make, "memit+lyaplock", layers=(1,), conflicts="keep")
    one = pair.edit_one(lm, EDITS[:1], other)
    plain = built(make, "memit", layers=(1,)).edit_one(lm, EDITS[:1], other)
    same(Patch(one.changes), Patch(plain.changes))
    assert distance(one.state["memory.1.start"], B @ A) < EXACT
    factor = pair.prepared(lm).moments[1]
    assert factor is not None
    own = whole_of(lm, Patch(one.changes[1:]))
    assert float(one.state["memory.1.queue"][1]) == pytest.approx(damage(own, factor.matrix()))
    two = pair.edit_one(lm, EDITS[1:2], one)
    assert distance(whole_of(lm, two), B @ A) < 0.2
