"""Kinds of change: those of other distributions do all that errata's own do, and all are found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from errata.errors import PatchError
from errata.model.lm import LM
from errata.model.tokens import Row
from errata.patch import Change, Dense, LowRank, Module, Patch, change_kind
from errata.patch.changes.kinds import CHANGES
from errata.patch.deltas import bounded, weight_deltas
from errata.patch.export import to_lora, to_merged
from errata.patch.places import is_transposed, parameter_of
from errata.patch.stack import Stack

ROWS = [Row((5, 6, 7, 8), (2, 3), (8, 9), 3), Row((11, 6, 7), (1, 2), (3, 4), 2)]
EXACT = 1e-12
"""Float64: one product more or less."""


@dataclass(frozen=True)
class Gain(Change):
    """Multiplies the weight of a projection: `W += (gain - 1) W`."""

    kind: ClassVar[str] = "test_gain"
    path: str
    gain: float

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, "gain": self.gain}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Gain:
        return cls(entry["path"], entry["gain"])

    @property
    def parameter(self) -> str:
        return f"{self.path}.weight"

    def check(self, lm: LM) -> None:
        parameter_of(lm, self.parameter)

    def difference(self, lm: LM) -> Tensor:
        return (self.gain - 1) * parameter_of(lm, self.parameter).detach()

    def scaled(self, factor: float) -> Gain:
        return replace(self, gain=1 + factor * (self.gain - 1))

    def projection(self, lm: LM) -> str:
        return self.path

    def install(self, parts: Any, group: int) -> None:
        parts.add_difference(group, Dense(self.parameter, self.difference(parts.lm)))


@pytest.fixture(autouse=True)
def gain() -> Iterator[None]:
    change_kind(Gain.kind)(Gain)
    yield
    CHANGES.forget(Gain.kind)


def logprobs(lm: LM) -> Tensor:
    return torch.tensor([score.logprobs for score in lm.score(ROWS)], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_a_kind_of_another_distribution_does_all_that_the_own_ones_do(
    kind: str, tiny: Callable[..., LM], tmp_path: Path
) -> None:
    lm = tiny(kind, "float64")
    path = lm.site(1).path
    weight = parameter_of(lm, f"{path}.weight").detach()
    patch = Patch.for_model(lm, [Gain(path, 1.5)], editor="hand")
    plain = Patch.for_model(lm, [Dense(f"{path}.weight", 0.5 * weight)], editor="hand")
    with plain.applied(lm):
        expected = logprobs(lm)
    assert not torch.allclose(expected, logprobs(lm))
    loaded = Patch.load(patch.save(tmp_path / "patch"))
    assert loaded.changes == patch.changes
    with loaded.applied(lm):
        assert torch.equal(logprobs(lm), expected)
    with Stack(lm, [loaded]) as stack:
        found = lm.score(ROWS, stack=stack, groups=[0, 0])
    stacked = torch.tensor([score.logprobs for score in found], dtype=torch.float64)
    torch.testing.assert_close(stacked, expected, rtol=EXACT, atol=EXACT)
    (delta,) = weight_deltas(lm, patch.scaled(0.5).changes).values()
    torch.testing.assert_close(delta, 0.25 * weight, rtol=EXACT, atol=EXACT)
    assert bounded(lm, patch) is patch
    report = to_lora(lm, patch, tmp_path / "lora")
    assert report.modules == (path,)
    from safetensors.torch import load_file

    files = load_file(report.folder / "adapter_model.safetensors")
    B, A = (files[f"base_model.model.{path}.lora_{x}.weight"] for x in "BA")
    stored = weight.T if is_transposed(lm.module(path)) else weight
    torch.testing.assert_close(B @ A, 0.5 * stored.float(), rtol=1e-4, atol=1e-5)
    to_merged(lm, patch, tmp_path / "merged")
    (whole,) = (tmp_path / "merged").glob("*.safetensors")
    found = load_file(whole)
    assert torch.equal(found[f"{path}.weight"], 1.5 * weight)


def test_what_a_kind_cannot_do_is_refused_by_name(tiny: Callable[..., LM], tmp_path: Path) -> None:
    lm = tiny("gpt2", "float64")
    vector = torch.zeros(lm.site(0).d_out, dtype=torch.float64)
    shift = Module(lm.site(0).path, "shift", {}, {"vector": vector})
    patch = Patch.for_model(lm, [shift], editor="hand")
    for act in (
        lambda: patch.scaled(2.0),
        lambda: to_lora(lm, patch, tmp_path / "lora"),
        lambda: to_merged(lm, patch, tmp_path / "merged"),
        lambda: shift.difference(lm),
    ):
        with pytest.raises(PatchError, match="the shift module at"):
            act()


def test_a_change_reaches_what_lies_above_it(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2", "float64")
    first, second = lm.spec.ffn_in[1][0], lm.site(1)

    def low(path: str) -> LowRank:
        return LowRank(path, torch.zeros(1, 1), torch.zeros(1, 1))

    def shift(path: str, where: Any) -> Module:
        return Module(path, "shift", {}, {}, where)

    for change, at_first, at_second in [
        (low(lm.site(0).path), True, True),
        (low(lm.site(2).path), False, False),
        (low(first.path), False, True),
        (low(second.path), False, False),
        (shift(first.path, "input"), True, True),
        (shift(second.path, "input"), False, True),
        (shift(second.path, "output"), False, False),
        (Dense(f"{first.path}.bias", torch.zeros(1)), False, True),
        (Dense("transformer.wte.weight", torch.zeros(1)), True, True),
        (Dense(f"{lm.spec.final_norm}.weight", torch.zeros(1)), False, False),
    ]:
        assert change.moves_input(lm, 1, [first.path]) is at_first, change
        assert change.moves_input(lm, 1, [second.path]) is at_second, change


FINDER = """
import os, sys
from errata.patch.changes import kinds
for kind in sys.argv[1:]:
    child = os.fork()  # each in a process in which no other kind was looked for
    if not child:
        registry = kinds.ROUTERS if kind == "serac" else kinds.NETWORKS
        print(kind, registry.find(kind), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_kinds_of_errata_are_found_in_a_process_that_has_not_edited() -> None:
    """Patches hold these names since they exist."""
    kinds = ["rep", "grace", "t_patcher", "lemoe", "shift", "serac"]
    done = subprocess.run(
        [sys.executable, "-c", FINDER, *kinds], capture_output=True, text=True, check=True
    )
    found = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert [kind for kind, _ in found] == kinds, done.stderr
    assert all("errata." in what for _, what in found)


def test_a_plug_in_names_its_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CHANGES.forget(Gain.kind)
    try:
        (tmp_path / "gain_plug_in.py").write_text(
            "from errata.patch import change_kind\n"
            "from tests.patch.test_changes import Gain\n"
            "change_kind(Gain.kind)(Gain)\n"
        )
        (tmp_path / "broken_plug_in.py").write_text("raise RuntimeError('imported')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        points = [
            metadata.EntryPoint("other", "broken_plug_in", "errata.kinds"),
            metadata.EntryPoint(Gain.kind, "gain_plug_in", "errata.kinds"),
        ]
        monkeypatch.setattr(
            metadata, "entry_points", lambda group: [p for p in points if p.group == group]
        )
        assert CHANGES.find(Gain.kind) is not None
    finally:
        change_kind(Gain.kind)(Gain)


def test_entries_that_describe_no_change_are_refused(tmp_path: Path) -> None:
    folder = Patch((LowRank("x", torch.zeros(2, 1), torch.zeros(1, 2)),)).save(tmp_path / "p")
    described = folder / "patch.json"
    document = json.loads(described.read_text())
    for entry, words in [
        ({"kind": "warp", "path": "x"}, "unknown kind of change 'warp'"),
        ({"path": "x"}, "unknown kind of change 'None'"),
        (["low_rank"], "is a list of 1; expected an object"),
        ({"kind": "low_rank"}, "path is null; expected a text"),
    ]:
        described.write_text(json.dumps({**document, "changes": [entry]}))
        with pytest.raises(PatchError, match=words):
            Patch.load(folder)
