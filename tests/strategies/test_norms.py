"""NAS and SPHERE: values of one length, and updates off the main directions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors.conftest import *  # noqa: F403 -- the fixtures that build small editors
from tests.editors.joint_samples import SETTINGS, Make, Tiny
from tests.locate.samples import EDITS

from errata.editors.base import Editor
from errata.errors import ConfigError
from errata.locate.contexts import Contexts
from errata.locate.keys import edit_keys
from errata.model.lm import LM
from errata.model.stored import read
from errata.patch import Patch
from errata.patch.deltas import weight_deltas
from errata.strategies.nas import Nas, anchored
from errata.strategies.sphere import kept_off, main_directions

EXACT = 1e-12
SAME = 1e-9


@pytest.fixture(autouse=True)
def _cache_of_its_own(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(cache_folder))


@pytest.fixture
def paired(make: Make) -> Callable[..., Editor]:
    def build(name: str, **more: Any) -> Editor:
        host = name.partition("+")[0]
        layers = {"layer": 1} if "rome" in host else {"layers": (0, 1)}
        own = {**SETTINGS.get(host, {}), **layers, "lr": 0.2, "steps": 4, "stop_loss": 0.0}
        return make(name, **{**own, **more})

    return build


# ---------------------------------------------------------------------- NAS


def test_values_get_the_length_and_keep_the_direction() -> None:
    values = torch.tensor([[3.0, 4.0], [0.6, 0.8], [30.0, 40.0]]).double()
    start = torch.ones(3, 2).double()
    found, skipped = anchored(values, start, 3.0)
    torch.testing.assert_close(found[:2], torch.tensor([[1.8, 2.4], [1.8, 2.4]]).double())
    assert torch.equal(found[2], start[2])  # longer than two anchors: not aimed at
    assert skipped == [2]
    assert anchored(values[:1], start[:1], 5.0)[0].equal(values[:1])  # it has the length already


@pytest.mark.parametrize("host", ["rome", "memit", "pmet"])
def test_the_ffn_answers_with_the_anchors_length(
    host: str, tiny: Tiny, paired: Callable[..., Editor]
) -> None:
    """What is aimed at, read off the residual of a host that writes one block."""
    lm = tiny("gpt2")
    one = {} if host == "rome" else {"layers": (1,)}
    pair = paired(f"{host}+nas", nas_anchor=9.0, **one)
    seen: list[torch.Tensor] = []
    aimed = pair.aimed  # type: ignore[attr-defined]

    def keep(lm: LM, edits: Any, layer: int, target: Any, place: str, patches: Any) -> Any:
        found = aimed(lm, edits, layer, target, place, patches)
        bare = edit_keys(lm, edits, Contexts(("",)), [layer], hidden=True)[layer]
        assert bare.hidden is not None
        rest = bare.hidden - bare.value if place == "block" else 0.0
        seen.append(found - rest)
        return found

    pair.aimed = keep  # type: ignore[attr-defined]
    pair.edit_one(lm, EDITS[:2])
    torch.testing.assert_close(
        torch.cat(seen).norm(dim=-1), torch.full((2,), 9.0).double(), rtol=SAME, atol=SAME
    )


def test_the_anchor_is_measured_once_and_kept(
    tiny: Tiny, paired: Callable[..., Editor], cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny("gpt2")
    pair = paired("memit+nas", nas_facts=6)
    assert isinstance(pair, Nas)
    pair.edit_one(lm, EDITS[:2])
    first = pair.anchor(lm, 1)
    assert list((cache_folder / "anchors").glob("*.json"))
    again = paired("memit+nas", nas_facts=6)
    assert isinstance(again, Nas)
    assert again.anchor(lm, 1) == first > 0
    # so long a value can only be skipped, and that is said
    short = paired("memit+nas", nas_anchor=1e-6)
    with caplog.at_level(logging.WARNING):
        patch = short.edit_one(lm, EDITS[:2])
    assert "skipped" in caplog.text
    assert EDITS[0].prompt in caplog.text
    assert max(float(delta.abs().max()) for delta in weight_deltas(lm, patch.changes).values()) < 1


def test_an_anchor_needs_facts(tiny: Tiny, paired: Callable[..., Editor], tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text('{"prompt": "The mayor of Oslo is", "target": "Anna", "subject": "Oslo"}\n')
    with pytest.raises(ConfigError, match="1 facts with a subject"):
        paired("rome+nas", nas_data=str(file)).edit_one(tiny("gpt2"), EDITS[:1])


# ---------------------------------------------------------------------- SPHERE


def test_directions_and_projection() -> None:
    W = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).double()
    rows = W / (W.norm(dim=1, keepdim=True) + 1e-8)
    C = rows.T @ rows / 6
    assert float(C.trace()) == pytest.approx(1, abs=1e-7)
    values, vectors = torch.linalg.eigh(C)
    carried = values.flip(0).cumsum(0) / values.sum()
    r = 1 + int((carried <= 0.5).sum())
    U = main_directions(W, 0.5)
    top = vectors.flip(1)[:, :r]
    torch.testing.assert_close(U @ U.T, top @ top.T, rtol=SAME, atol=SAME)
    update = torch.randn(4, 9, generator=torch.Generator().manual_seed(1)).double()
    found = kept_off(update, U, 0.8)
    torch.testing.assert_close(found @ U, 0.2 * update @ U, rtol=SAME, atol=EXACT)
    off = torch.eye(9).double() - U @ U.T
    torch.testing.assert_close(found @ off, update @ off, rtol=SAME, atol=EXACT)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("host", ["rome", "alphaedit", "rect"])
def test_a_first_update_is_the_hosts_projected(
    host: str, kind: str, tiny: Tiny, make: Make, paired: Callable[..., Editor]
) -> None:
    lm = tiny(kind)
    one = {} if host == "rome" else {"layers": (1,)}
    pair = paired(f"{host}+sphere", **one)
    own = {k: v for k, v in pair.config.model_dump().items() if not k.startswith("sphere")}
    (plain,) = weight_deltas(lm, make(host, **own).edit_one(lm, EDITS[:1]).changes).values()
    (found,) = weight_deltas(lm, pair.edit_one(lm, EDITS[:1]).changes).values()
    site = lm.site(1)
    weight = read(lm.model, site.weight).detach()
    if site.transposed:
        weight, plain, found = weight.T, plain.T, found.T
    strength = 0.5 if host == "alphaedit" else 0.8
    expected = kept_off(plain, main_directions(weight, 0.5), strength)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


def test_later_updates_look_at_the_weight_as_it_is(
    tiny: Tiny, paired: Callable[..., Editor]
) -> None:
    """A second edit under an earlier patch: directions are those of the edited matrix."""
    lm = tiny("gpt2")
    pair = paired("memit+sphere", layers=(1,), sphere_strength=1.0)
    first = pair.edit_one(lm, EDITS[:1]).scaled(50.0)
    both = pair.edit_one(lm, EDITS[1:2], first)
    (added,) = weight_deltas(lm, both.changes[1:]).values()
    weight = read(lm.model, lm.site(1).weight).detach()
    (moved,) = weight_deltas(lm, first.changes).values()
    U = main_directions((weight + moved).T, 0.5)
    assert float((added.T @ U).norm()) <= 1e-9 * float(added.norm())
    old = main_directions(weight.T, 0.5)
    assert float((added.T @ old).norm()) > 1e-6 * float(added.norm())


def test_off_it_is_the_host(tiny: Tiny, make: Make, paired: Callable[..., Editor]) -> None:
    lm = tiny("gpt2")
    pair = paired("memit+sphere", sphere_share=0.0)
    own = {k: v for k, v in pair.config.model_dump().items() if not k.startswith("sphere")}
    one, other = (e.edit_one(lm, EDITS[:2]) for e in (pair, make("memit", **own)))
    for a, b in zip(one.changes, other.changes, strict=True):
        assert all(torch.equal(a.tensors()[n], b.tensors()[n]) for n in b.tensors())
    assert isinstance(one, Patch)
