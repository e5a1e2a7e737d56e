"""Oracle T12 and fine-tuning against torch's own optimisers on a copy of the model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from tests.locate.samples import EDITS

from errata.editors.base import Editor
from errata.errors import ConfigError
from errata.model.lm import LM
from errata.patch import Dense, LowRank, Patch

SAME = 1e-8
"""Float64 against torch.optim; Adam divides by small gradients and so amplifies rounding."""

Make = Callable[..., Editor]
Tiny = Callable[..., LM]


def tune_a_copy(
    lm: LM,
    edits,
    names: list[str],
    *,
    kind=torch.optim.Adam,
    steps=5,
    lr=0.01,
    decay=0.0,
    eps=None,
    objective="target_new",
    batch_size=None,
    patch: Patch | None = None,
) -> dict[str, torch.Tensor]:
    """The published loop, on a copy of the model."""
    model = copy.deepcopy(lm.model)
    other = LM(model, lm.tokenizer, name="copy")
    other.spec = lm.spec
    if patch is not None:
        for change in patch.changes:
            assert isinstance(change, LowRank)
            delta = change.B @ change.A
            weight = model.get_parameter(f"{change.path}.weight")
            weight.data += delta.T if lm.site(1).transposed else delta
    parameters = {name: model.get_parameter(name).requires_grad_() for name in names}
    start = {name: p.detach().clone() for name, p in parameters.items()}
    optimiser = kind(parameters.values(), lr=lr, weight_decay=decay)
    size = batch_size or len(edits)
    for _ in range(steps):
        seen = []
        for at in range(0, len(edits), size):
            losses = []
            for edit in edits[at : at + size]:
                row = other.row(edit.prompt, edit.target)
                logp = other.run(other.batch([row], [0])).logits[0].log_softmax(-1)
                positions = list(row.positions)
                if objective == "prompt_last":
                    positions = [row.prompt_length - 1] * len(row.labels)
                losses.append(-logp[positions, list(row.labels)].mean())
            loss = torch.stack(losses).mean()
            seen.append(loss.item())
            if loss.item() >= 1e-2:
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            if eps is not None:
                with torch.no_grad():
                    for name, p in parameters.items():
                        p.copy_(p.clamp(start[name] - eps, start[name] + eps))
        if sum(seen) / len(seen) < 1e-2:
            break
    return {name: p.detach() - start[name] for name, p in parameters.items()}


def close(patch: Patch, expected: dict[str, torch.Tensor]) -> None:
    found = {change.path: change.delta for change in patch.changes if isinstance(change, Dense)}
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert found[name].shape == delta.shape
        assert float((found[name] - delta).norm()) <= SAME * float(delta.norm())


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
@pytest.mark.parametrize("objective", ["target_new", "prompt_last"])
def test_it_is_the_published_loop(kind: str, objective: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    groups = [EDITS[:1], EDITS[1:4]]
    editor = make("ft", lr=0.01, steps=5, objective=objective)
    for group, patch in zip(groups, editor.edit(lm, groups), strict=True):
        close(patch, tune_a_copy(lm, group, [lm.site(1).weight], objective=objective))


@pytest.mark.parametrize("decoupled", [False, True])
def test_weight_decay_pulls_the_whole_weight(decoupled: bool, tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    g = torch.Generator().manual_seed(0)
    site = lm.site(1)
    earlier = Patch.for_model(
        lm,
        [
            LowRank(
                site.path,
                torch.randn(site.d_out, 2, generator=g, dtype=torch.float64),
                torch.randn(2, site.d_in, generator=g, dtype=torch.float64),
            )
        ],
        editor="hand",
    )
    editor = make(
        "ft", lr=0.01, steps=5, weight_decay=0.3, optimizer="adamw" if decoupled else "adam"
    )
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    for after in (None, earlier):
        patch = editor.edit_one(lm, EDITS[:2], after=after)
        expected = tune_a_copy(lm, EDITS[:2], [site.weight], kind=kind, decay=0.3, patch=after)
        close(patch, expected)


def test_edits_in_batches(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    groups = [EDITS[:1], EDITS]
    editor = make("ft", lr=0.01, steps=4, batch_size=2)
    for group, patch in zip(groups, editor.edit(lm, groups), strict=True):
        expected = tune_a_copy(lm, group, [lm.site(1).weight], steps=4, batch_size=2)
        close(patch, expected)


def test_the_bias_may_be_tuned_too(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    path = lm.site(1).path
    patch = make("ft", lr=0.01, steps=5, bias=True).edit_one(lm, EDITS[:2])
    close(patch, tune_a_copy(lm, EDITS[:2], [f"{path}.weight", f"{path}.bias"]))
    # a matrix without bias has none to tune
    lm = tiny("qwen3")
    patch = make("ft", lr=0.01, steps=5, bias=True).edit_one(lm, EDITS[:2])
    close(patch, tune_a_copy(lm, EDITS[:2], [lm.site(1).weight]))


def test_several_layers(tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    editor = make("ft", lr=0.01, steps=5, layers=(2, 0))
    names = [lm.site(0).weight, lm.site(2).weight]
    close(editor.edit_one(lm, EDITS[:2]), tune_a_copy(lm, EDITS[:2], names))


@pytest.mark.parametrize("eps", [1e-3, 0.05])
def test_T12_a_norm_constraint_is_a_box(eps: float, tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = make("ft", lr=0.02, steps=6, norm_constraint=eps)
    before = {key: value.clone() for key, value in lm.model.state_dict().items()}
    patch = editor.edit_one(lm, EDITS[:2])
    close(patch, tune_a_copy(lm, EDITS[:2], [lm.site(1).weight], lr=0.02, steps=6, eps=eps))
    (change,) = patch.changes
    assert isinstance(change, Dense)
    assert float(change.delta.abs().max()) <= eps
    with patch.applied(lm):
        for key, value in lm.model.state_dict().items():
            if key == lm.site(1).weight:
                assert float((value - before[key]).abs().max()) <= eps * (1 + 1e-9)
            else:
                assert torch.equal(value, before[key])


def test_T12_no_step_once_the_loss_is_small(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    groups = [EDITS[:1], EDITS[1:2]]
    patches = make("ft", stop_loss=1e9).edit(lm, groups)
    assert all(patch.is_empty for patch in patches)
    # a threshold between the first losses: one group is tuned, the other left alone
    losses = []
    for group in groups:
        (score,) = lm.score([lm.row(group[0].prompt, group[0].target)])
        losses.append(-sum(score.logprobs) / len(score.logprobs))
    middle = sum(losses) / 2
    patches = make("ft", stop_loss=middle, steps=1).edit(lm, groups)
    assert [patch.is_empty for patch in patches] == [loss < middle for loss in losses]


def test_groups_stop_on_their_own(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    groups = [[edit] for edit in EDITS]
    # likelihoods differ, so with this threshold the groups stop at different steps
    settings = {"stop_loss": 4.0, "steps": 12, "lr": 0.01}
    together = make("ft", **settings).edit(lm, groups)
    for group, patch in zip(groups, together, strict=True):
        alone = make("ft", **settings).edit_one(lm, group)
        assert patch.is_empty == alone.is_empty
        for one, other in zip(patch.changes, alone.changes, strict=True):
            assert isinstance(one, Dense)
            assert isinstance(other, Dense)
            assert float((one.delta - other.delta).norm()) <= SAME * float(other.delta.norm())


@pytest.mark.parametrize("limit", ["tokens", "memory"])
def test_bounds_change_nothing(
    limit: str, tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("qwen3")
    groups = [EDITS[:3], EDITS[3:]]
    whole = make("ft").edit(lm, groups)
    if limit == "tokens":
        monkeypatch.setattr(lm, "max_tokens", 20)  # every group is spread over several passes
        bounded = make("ft").edit(lm, groups)
    else:
        bounded = make("ft", memory_gb=1e-9).edit(lm, groups)
    for one, other in zip(whole, bounded, strict=True):
        for a, b in zip(one.changes, other.changes, strict=True):
            assert isinstance(a, Dense)
            assert isinstance(b, Dense)
            assert float((a.delta - b.delta).norm()) <= SAME * float(b.delta.norm())


def test_prompt_last_scores_all_tokens_at_one_position(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    edit = next(e for e in EDITS if len(lm.row(e.prompt, e.target).labels) > 1)
    editor = make("ft", objective="prompt_last", steps=1, stop_loss=0.0)
    row = editor._row(lm, edit)  # type: ignore[attr-defined]
    assert len(set(row.positions)) == 1
    assert row.ids == lm.row(edit.prompt).ids
    assert row.labels == lm.row(edit.prompt, edit.target).labels


def test_a_layer_may_be_given_as_a_number(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    one, other = (make("ft", layers=value).edit_one(lm, EDITS[:1]) for value in (1, (-2,)))
    assert one.changes[0].path == other.changes[0].path == lm.site(1).weight
    auto = make("ft", layers="auto").edit_one(lm, EDITS[:1])
    assert auto.changes[0].path == lm.site(2).weight
    with pytest.raises(ConfigError, match="does not exist"):
        make("ft", layers=(7,)).edit_one(lm, EDITS[:1])


def test_half_precision_keeps_its_difference_in_float32(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2", "bfloat16")
    patch = make("ft", lr=1e-5, steps=3).edit_one(lm, EDITS[:1])
    (change,) = patch.changes
    assert isinstance(change, Dense)
    assert change.delta.dtype == torch.float32
    # steps of 1e-5 are lost in bfloat16 weights of 0.1 to 1, but not in the difference
    assert math.isclose(float(change.delta.abs().max()), 3e-5, rel_tol=0.2)
