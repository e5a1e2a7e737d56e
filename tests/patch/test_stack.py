"""Stacked rows: row b under patch r(b), equal to applying each patch alone; differentiable."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.tiny_models import DEVICE, TINY
from torch.utils._python_dispatch import TorchDispatchMode

from errata.errors import PatchError
from errata.model.tokens import patched, positions_of
from errata.patch import Dense, LowRank, Module, Patch
from errata.patch.stack import Stack

ARCHITECTURES = sorted(name for name in TINY if "-" not in name)
EQUAL = 1e-10
"""Largest difference of float64 logits between a stacked row and the same row edited in place."""

PROMPTS = [
    ("The capital of France is", "Rome"),
    ("Who", "Danielle of Berlin"),
    ("The river flows through the town of", "Paris"),
]


def low_rank(lm, layer, rank, seed):
    site = lm.site(layer)
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(site.d_out, rank, generator=generator, dtype=torch.float64)
    A = torch.randn(rank, site.d_in, generator=generator, dtype=torch.float64)
    return LowRank(site.path, B, A)


def some_patches(lm):
    site = lm.site(1)
    generator = torch.Generator().manual_seed(9)
    shape = lm.model.get_parameter(site.weight).shape
    dense = Dense(site.weight, torch.randn(shape, generator=generator, dtype=torch.float64))
    vector = torch.randn(lm.spec.d_model, generator=generator, dtype=torch.float64)
    inner = torch.randn(site.d_in, generator=generator, dtype=torch.float64)
    mixed = [
        dense,
        low_rank(lm, 1, 1, 3),
        Module(lm.spec.blocks[2], "shift", {}, {"vector": vector}),
        Module(site.path, "shift", {}, {"vector": inner}, where="input"),
    ]
    if site.bias:
        mixed.append(Dense(f"{site.path}.bias", vector))
    return [
        Patch((low_rank(lm, 0, 1, 1),)),
        Patch((low_rank(lm, 0, 3, 2), low_rank(lm, 2, 2, 2))),
        None,
        Patch(tuple(mixed)),
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_row_runs_under_its_own_patch(tiny, name):
    lm = tiny(name, "float64")
    patches = some_patches(lm)
    groups = [0, 3, -1, 1, 1, 3, 2, 0, -1]
    rows = [lm.row(*PROMPTS[i % 3]) for i in range(len(groups))]
    batch = lm.batch(rows, range(len(rows)))
    base = lm.run(batch).logits
    with Stack(lm, patches):
        stacked = lm.run(lm.batch(patched(rows, groups), range(len(rows)))).logits
    real = batch.attention_mask.bool()
    for row, group in enumerate(groups):
        if group < 0 or patches[group] is None:
            assert torch.equal(stacked[row], base[row])
            continue
        with patches[group].applied(lm):
            expected = lm.run(batch).logits[row]
        torch.testing.assert_close(stacked[row][real[row]], expected[real[row]], rtol=0, atol=EQUAL)
        assert not torch.equal(stacked[row], base[row])
    assert torch.equal(lm.run(batch).logits, base)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unedited_rows_are_bit_equal_in_a_mixed_batch(tiny, dtype):
    lm = tiny("qwen3", dtype)
    rows = [lm.row(*PROMPTS[i % 3]) for i in range(4)]
    batch = lm.batch(rows, range(4))
    base = lm.run(batch).logits
    with Stack(lm, [Patch((low_rank(lm, 1, 2, 0),))]):
        mixed = lm.run(lm.batch(patched(rows, [-1, 0, -1, 0]), range(4))).logits
    assert torch.equal(mixed[[0, 2]], base[[0, 2]])
    assert not torch.equal(mixed[[1, 3]], base[[1, 3]])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradients_equal_those_of_the_edited_weight(tiny, name):
    """Autograd through the thin products = autograd through a materialised W + B A (oracle E.6)."""
    lm = tiny(name, "float64")
    site = lm.site(1)
    rows = patched([lm.row(*pair) for pair in PROMPTS[:2]], [0, 0])
    batch, at = lm.batch(rows, [0, 1]), positions_of(rows, [0, 1], DEVICE)
    change = low_rank(lm, 1, 2, 5)
    A, B = (t.to(DEVICE).requires_grad_() for t in (change.A, change.B))
    with Stack(lm, [Patch((LowRank(site.path, B, A),))]):
        lm.logits(batch, at).log_softmax(-1)[:, 3].sum().backward()
    thin = (A.grad.clone(), B.grad.clone())
    A.grad = B.grad = None
    stored = lm.model.get_parameter(site.weight)
    delta = (B @ A).T if site.transposed else B @ A
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    given["position_ids"] = batch.position_ids
    out = torch.func.functional_call(lm.model, {site.weight: stored + delta}, (), given)
    out.logits[at[:, 0], at[:, 1]].log_softmax(-1)[:, 3].sum().backward()
    torch.testing.assert_close(thin[0], A.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(thin[1], B.grad, rtol=1e-9, atol=1e-12)


def test_what_cannot_differ_by_row_is_refused(tiny):
    lm = tiny("llama")
    name = f"{lm.spec.final_norm}.weight"
    patch = Patch((Dense(name, torch.ones(lm.spec.d_model)),))
    with pytest.raises(PatchError, match="cannot differ from row to row"):
        Stack(lm, [patch])


def test_rows_say_where_they_run(tiny):
    """Rows that name no patch run under the base model; one that is not there is refused."""
    lm = tiny("llama")
    row = lm.row(*PROMPTS[0])
    base = lm.score([row])
    stack = Stack(lm, [Patch((low_rank(lm, 1, 1, 0),))])
    with stack:
        assert lm.score([row]) == base
        assert lm.score([replace(row, patch=0)]) != base
        assert lm.score([row], groups=[0]) == lm.score([replace(row, patch=0)])
        assert lm.score([row], stack=stack) == lm.score([replace(row, patch=0)])
        assert lm.top([PROMPTS[0][0]], groups=[0]) != lm.top([PROMPTS[0][0]])
        with pytest.raises(PatchError, match=r"patches \[1\]; this stack holds 0\.\.0"):
            lm.score([row], groups=[1])
    with pytest.raises(PatchError, match="no stack is active"):
        lm.score([replace(row, patch=0)])
    with pytest.raises(PatchError, match="this stack of patches is not active"):
        lm.score([row], stack=stack)
    assert lm.score([row]) == base


def test_own_calls_of_the_model_have_to_be_routed(tiny):
    lm = tiny("llama")
    row = lm.row(*PROMPTS[0])
    ids = torch.tensor([row.ids], device=DEVICE)
    base = lm.model(ids).logits
    with Stack(lm, [Patch((low_rank(lm, 1, 1, 0),))]) as stack:
        with pytest.raises(PatchError, match=r"this stack holds 0\.\.0"):
            stack.route([1])
        with pytest.raises(PatchError, match=r"call stack\.route"):
            lm.model(ids)
        stack.route([0])
        patched_logits = lm.model(ids).logits
        assert not torch.equal(patched_logits, base)
        lm.score([row])  # goes by its rows, and leaves the routing as it was
        assert torch.equal(lm.model(ids).logits, patched_logits)
        stack.route(torch.tensor([-1]))
        assert torch.equal(lm.model(ids).logits, base)
    assert torch.equal(lm.model(ids).logits, base)


def test_one_stack_at_a_time(tiny):
    lm = tiny("llama")
    first, second = (Stack(lm, [Patch((low_rank(lm, 1, 1, seed),))]) for seed in (0, 1))
    rows = patched([lm.row(*PROMPTS[0])], [0])
    with first:
        alone = lm.score(rows)
        with pytest.raises(PatchError, match="active on this model already"), second:
            pass
        assert lm.score(rows) == alone
    with second:
        assert lm.score(rows) != alone
    with first:
        assert lm.score(rows) == alone


class Waits(TorchDispatchMode):
    """Counts operations whose answer has to come back from the device before anything goes on."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(name in str(func) for name in self.NAMES)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_stack_never_waits_for_the_device(tiny, name):
    """Which rows a patch has is known on the host; on a GPU every look at it would be a stop."""
    lm = tiny(name, "float64")
    vector = torch.randn(lm.spec.d_model, dtype=torch.float64)
    module = Patch((Module(lm.spec.blocks[1], "shift", {}, {"vector": vector}),))
    patches = [*some_patches(lm), module]
    rows = [lm.row(*PROMPTS[i % 3]) for i in range(6)]
    at = positions_of(rows, range(6))
    plain, mixed = lm.batch(rows, range(6)), lm.batch(patched(rows, [0, 1, -1, 3, 4, 0]), range(6))
    counts = []
    with torch.no_grad():
        with Waits() as waits:
            base = lm.logits(plain, at)
        counts.append(waits.count)
        with Stack(lm, patches), Waits() as waits:
            edited = lm.logits(mixed, at)
        counts.append(waits.count)
    assert counts[0] == counts[1]
    assert not torch.equal(base, edited)
