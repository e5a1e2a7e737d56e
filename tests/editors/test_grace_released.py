"""GRACE with `compat`: the released rule, against a small implementation of its own.

The reference knows nothing of errata's codebook: one hook, lists of keys and radii, a table of
values trained by torch.optim. It is written from the description of the rule, in which only the
last token of a prompt is compared with keys and replaced, in training and in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import DEVICE
from torch import Tensor

from errata.case import Edit
from errata.editors.base import Editor
from errata.editors.grace.codebook import RELEASED_VERSION, VERSION
from errata.editors.grace.editor import Grace
from errata.errors import PatchError
from errata.model.lm import LM
from errata.model.tokens import Row
from errata.patch import Module, Patch
from errata.patch.stack import Stack

Make = Callable[..., Editor]
Tiny = Callable[..., LM]

EXACT = 1e-9
"""Relative, in float64: the same operations, of which only the order differs."""

DIFFERS = 1e-3
"""Between the values of both rules, where another token of a prompt lies in a ball."""

EDITS = [
    Edit("Anna lives in", "Paris"),
    Edit("Boris lives in", "Paris"),
    Edit("The capital of France is", "Rome"),
    Edit("Boris works for Anna in", "Oslo"),
]
LAYER, STEPS, RATE = 1, 6, 0.3


class Released:
    """The released rule on one layer."""

    def __init__(self, lm: LM, radius: float) -> None:
        self.lm, self.radius = lm, radius
        self.layer: Any = lm.module(lm.site(LAYER).path)
        self.keys: list[Tensor] = []
        self.radii: list[float] = []
        self.labels: list[Tensor] = []
        self.values = torch.empty(0)
        self.edited: Tensor | None = None  # the label, at the first step of an edit
        self.asking: set[int] = set()

    @contextmanager
    def hooked(self, asking: set[int]) -> Iterator[None]:
        self.asking = asking
        handle = self.layer.register_forward_hook(self._hook)
        try:
            yield
        finally:
            handle.remove()

    def _hook(self, module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        new = output.clone()
        for place in sorted(self.asking):
            query = args[0][0, place].detach()
            if self.edited is not None:
                self._grow(query, output[0, place].detach(), self.edited)
                self.edited = None
            if self.keys:
                distances = (torch.stack(self.keys) - query).norm(dim=1)
                nearest = int(distances.argmin())
                if float(distances[nearest]) <= self.radii[nearest]:
                    new[0, place] = self.values[nearest]
        return new

    def _grow(self, query: Tensor, output: Tensor, label: Tensor) -> None:
        distances = [float((key - query).norm()) for key in self.keys]
        nearest = min(range(len(distances)), key=distances.__getitem__, default=-1)
        far = not distances or distances[nearest] > self.radius + self.radii[nearest]
        same = not far and bool(label.mean() == self.labels[nearest].mean())
        if same:
            # errata's balls are a trifle wider than to the query, so that it lies inside again
            self.radii[nearest] = max(self.radii[nearest], distances[nearest] * (1 + 1e-6))
            return
        self.keys.append(query)
        self.radii.append(self.radius)
        if not far:
            self.radii[nearest] = distances[nearest] / 2 - 1e-5
            self.radii[-1] = distances[nearest] / 2
        self.labels.insert(0, label)
        old = self.values.detach().reshape(-1, len(output))
        self.values = torch.cat([old.to(output), output[None]]).requires_grad_()

    def edit(self, edit: Edit) -> None:
        row = self.lm.row(edit.prompt, edit.target)
        self.edited = torch.tensor([-100.0] * row.prompt_length + [float(n) for n in row.labels])
        optimizer = None
        for _ in range(STEPS):
            with self.hooked({row.prompt_length - 1}), torch.enable_grad():
                logits = self.lm.model(torch.tensor([row.ids]), use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[0, list(row.positions)], torch.tensor(row.labels)
            )
            # made behind the first pass, which makes the key
            optimizer = optimizer or torch.optim.Adam([self.values], RATE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def logits(self, ids: list[int], asking: set[int]) -> Tensor:
        with self.hooked(asking), torch.no_grad():
            return self.lm.model(torch.tensor([ids]), use_cache=False).logits[0]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, tiny: Tiny) -> LM:
    if DEVICE.type != "cpu":
        pytest.skip("the reference runs on the processor")
    return tiny(request.param)


def keys_of(lm: LM, row: Row) -> Tensor:
    kept: list[Tensor] = []
    layer: Any = lm.module(lm.site(LAYER).path)
    handle = layer.register_forward_pre_hook(lambda module, args: kept.append(args[0][0]))
    with torch.no_grad():
        lm.model(torch.tensor([row.ids]))
    handle.remove()
    return kept[0]


@pytest.fixture(scope="module")
def radius(lm: LM) -> float:
    """Wide enough that another token of the first prompt lies in the first ball."""
    keys = keys_of(lm, lm.row(EDITS[0].prompt))
    return 1.01 * float((keys[:-1] - keys[-1]).norm(dim=1).min())


@pytest.fixture(scope="module")
def released(lm: LM, radius: float) -> Released:
    made = Released(lm, radius)
    for edit in EDITS:
        made.edit(edit)
    return made


def grace(make: Make, radius: float, **settings: Any) -> Grace:
    editor = make(
        "grace", layer=LAYER, radius=radius, start="warm", lr=RATE, steps=STEPS, **settings
    )
    assert isinstance(editor, Grace)
    return editor


@pytest.fixture(scope="module")
def patch(lm: LM, make: Make, radius: float) -> Patch:
    made = None
    editor = grace(make, radius, compat=True)
    for edit in EDITS:
        made = editor.edit_one(lm, [edit], after=made)
    assert made is not None
    return made


def weights(patch: Patch) -> dict[str, Tensor]:
    (module,) = patch.changes
    assert isinstance(module, Module)
    return dict(module.weights)


def test_keys_radii_and_values(lm: LM, released: Released, patch: Patch) -> None:
    found = weights(patch)
    torch.testing.assert_close(found["keys"], torch.stack(released.keys), rtol=EXACT, atol=EXACT)
    assert found["radii"].tolist() == pytest.approx(released.radii, rel=1e-9)
    torch.testing.assert_close(found["values"], released.values.detach(), rtol=EXACT, atol=EXACT)


def test_without_it_another_token_of_the_prompt_is_rewritten(
    lm: LM, make: Make, radius: float, released: Released
) -> None:
    """What `compat` is there for: where no other token lies in a ball both rules agree."""
    first = grace(make, radius).edit_one(lm, EDITS[:1])
    apart = (weights(first)["values"][0] - weights_of(released, lm, radius)).abs().max()
    assert apart > DIFFERS
    narrow = grace(make, 1e-3).edit_one(lm, EDITS[:1])
    same = grace(make, 1e-3, compat=True).edit_one(lm, EDITS[:1])
    assert torch.equal(weights(narrow)["values"], weights(same)["values"])


def weights_of(released: Released, lm: LM, radius: float) -> Tensor:
    alone = Released(lm, radius)
    alone.edit(EDITS[0])
    return alone.values.detach()[0]


def test_in_use_the_last_token_of_the_prompt_alone_asks(
    lm: LM, released: Released, patch: Patch
) -> None:
    rows = [lm.row(edit.prompt, edit.target) for edit in EDITS]
    rows += [lm.row("Boris lives in", "Paris"), lm.row("Anna lives in Rome and", "works")]
    expected = []
    for row in rows:
        logits = released.logits(list(row.ids), {row.prompt_length - 1}).log_softmax(-1)
        expected.append(
            [float(logits[p, n]) for p, n in zip(row.positions, row.labels, strict=True)]
        )
    with patch.applied(lm):
        inside = [score.logprobs for score in lm.score(rows)]
    with Stack(lm, [None, patch]) as stack:
        stacked = [s.logprobs for s in lm.score(rows, stack=stack, groups=[1] * len(rows))]
    for one, other, reference in zip(inside, stacked, expected, strict=True):
        assert list(one) == pytest.approx(reference, rel=EXACT)
        assert list(other) == pytest.approx(reference, rel=EXACT)


def test_a_cached_generation_asks_for_every_new_token(
    lm: LM, released: Released, patch: Patch
) -> None:
    """As the released code does: behind the prompt each pass has one token, which is its last."""
    model: Any = lm.model
    changed = 0
    for edit in EDITS:
        given = lm.tokenizer(edit.prompt, return_tensors="pt")
        ids = given["input_ids"][0].tolist()
        asking = {len(ids) - 1}
        for _ in range(5):
            ids.append(int(released.logits(ids, asking)[-1].argmax()))
            asking.add(len(ids) - 1)
        settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": lm.pad_id}
        settings |= {"eos_token_id": None}
        plain = model.generate(**given, **settings, use_cache=True)[0].tolist()
        with patch.applied(lm):
            cached = model.generate(**given, **settings, use_cache=True)[0].tolist()
        assert cached == ids
        changed += cached != plain
    assert changed


def test_padding_on_the_left_moves_the_last_token_of_no_prompt(lm: LM, patch: Patch) -> None:
    model: Any = lm.model
    ids = lm.tokenizer(EDITS[0].prompt, return_tensors="pt")["input_ids"]
    padded = torch.cat([torch.full((1, 3), lm.pad_id), ids], 1)
    mask = torch.cat([torch.zeros(1, 3), torch.ones_like(ids)], 1).long()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with patch.applied(lm), torch.no_grad():
        alone = model(ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        beside = model(padded, attention_mask=mask, position_ids=places).logits[0, -1]
    torch.testing.assert_close(beside, alone, rtol=1e-8, atol=1e-8)


def test_all_tokens_before_the_deciding_one(lm: LM, make: Make) -> None:
    made = grace(make, 1e-3, compat=True, replacement="replace_prompt").edit_one(lm, EDITS[1:2])
    row = lm.row(EDITS[1].prompt, EDITS[1].target)
    kept: list[Tensor] = []
    layer: Any = lm.module(lm.site(LAYER).path)
    with made.applied(lm), torch.no_grad():
        handle = layer.register_forward_hook(lambda module, args, output: kept.append(output[0]))
        lm.run(lm.batch([row], [0]))
        handle.remove()
    last = row.prompt_length - 1
    assert (kept[0][:last] == weights(made)["values"][0]).all()
    assert (kept[0][last] != weights(made)["values"][0]).any()


def test_the_rule_is_kept_in_the_patch(
    lm: LM, make: Make, patch: Patch, radius: float, tmp_path: Path
) -> None:
    again = Patch.load(patch.save(tmp_path / "released"))
    (module,) = again.changes
    assert isinstance(module, Module)
    assert module.config["version"] == RELEASED_VERSION  # refused by what does not know the rule
    row = lm.row(EDITS[0].prompt, EDITS[0].target)
    with patch.applied(lm):
        (before,) = lm.score([row])
    with again.applied(lm):
        assert lm.score([row])[0].logprobs == before.logprobs
    plain = grace(make, radius).edit_one(lm, EDITS[:1])
    (module,) = plain.changes
    assert isinstance(module, Module)
    assert (module.config["version"], "asks" in module.config) == (VERSION, False)
    with pytest.raises(PatchError, match=r"made with GRACE's released rule(.|\n)*compat=true"):
        grace(make, radius).edit_one(lm, EDITS[1:2], after=patch)
    with pytest.raises(PatchError, match=r"made without GRACE's released rule(.|\n)*compat=false"):
        grace(make, radius, compat=True).edit_one(lm, EDITS[1:2], after=plain)
