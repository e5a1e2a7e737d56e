"""Which groups a step sees, and its noise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.training.samples import CASES, groups, model, run

from errata.training.groups import merged
from errata.training.sampler import Sampler, noise_for


def test_every_group_once_per_epoch() -> None:
    sampler = Sampler([7, 5], batch=4, seed=0)
    drawn = [i for step in range(9) for i in sampler.indices(step)]  # 36 draws: three epochs
    for epoch in range(3):
        assert sorted(drawn[12 * epoch : 12 * (epoch + 1)]) == list(range(12))
    assert drawn[:12] != drawn[12:24]


def test_order_is_a_function_of_seed_and_step() -> None:
    straight = Sampler([7, 5], batch=4, seed=3, augment_share=0.3)
    expected = [straight.indices(step) for step in range(20)]
    again = Sampler([7, 5], batch=4, seed=3, augment_share=0.3)
    assert [again.indices(step) for step in reversed(range(20))] == expected[::-1]
    other = Sampler([7, 5], batch=4, seed=4, augment_share=0.3)
    assert [other.indices(step) for step in range(20)] != expected


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.5])
def test_share_of_the_second_pool_is_exact(share: float) -> None:
    sampler = Sampler([100, 10, 6], batch=8, seed=0, augment_share=share)
    drawn = [i for step in range(150) for i in sampler.indices(step)]
    for count in (8, 80, 1200):
        assert sum(i >= 100 for i in drawn[:count]) == int(count * share)
    added = [i for i in drawn if i >= 100]
    seen = Counter(added[: len(added) // 16 * 16])
    assert max(seen.values()) - min(seen.values()) == 0
    main = Counter(i for i in drawn if i < 100)
    assert max(main.values()) - min(main.values()) <= 1


def test_noise_of_an_edit_does_not_depend_on_who_computes_it() -> None:
    of = groups(model())[:4]  # two edits each
    everything = noise_for(0, 5, of, range(4))(1, (8, 3, 2))
    for rank in range(2):
        mine = list(range(rank, 4, 2))
        part = noise_for(0, 5, of, mine)(1, (4, 3, 2))
        rows = [row for g in mine for row in (2 * g, 2 * g + 1)]
        assert torch.equal(part, everything[rows])
    assert not torch.equal(noise_for(0, 6, of, range(4))(1, (8, 3, 2)), everything)
    assert not torch.equal(noise_for(0, 5, of, range(4))(2, (8, 3, 2)), everything)


def test_merged_groups_keep_main_edits_first() -> None:
    left, right = groups(model())[:2]
    both = merged([left, right])
    assert both.main == 2
    assert both.edits == (left.edits[0], right.edits[0], left.edits[1], right.edits[1])
    assert both.edit_rows[1] == right.edit_rows[0]
    assert len(both.gens) == len(left.gens) + len(right.gens)
    assert len(both.locs) == len(left.locs) + len(right.locs)


def test_the_run_draws_from_all_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from errata.training.loop import Trainer

    original, seen = Trainer._batch, []

    def batch(self: Trainer, step: int) -> list:
        found = original(self, step)
        seen.extend(part for g in found for part in g.id.split("+"))
        return found

    monkeypatch.setattr(Trainer, "_batch", batch)
    run(tmp_path / "run", cases=[CASES[:8], CASES[8:]], augment_share=0.25, merge=2, batch=4)
    assert len(seen) == 6 * 8
    assert sum(int(name) >= 8 for name in seen) == 12
