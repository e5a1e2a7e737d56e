"""What takes long before an edit says how far it has come: by a clock that counts its readings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from errata import progress
from errata.locate import own_text
from errata.locate.contexts import WORDS, sample_prefixes
from errata.locate.moments import MomentSettings, get_moments
from errata.locate.spectrum import spectrum
from errata.model.lm import LM
from errata.progress import Lines, listening


class Clock:
    """An hour passes between two looks at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 3600.0
        return self.now


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    clock, lines = Clock(), []
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)

    class Timed(Lines):
        def __init__(self, label: str, say: progress.Say) -> None:
            super().__init__(label, say, clock)

    monkeypatch.setattr(progress, "Lines", Timed)
    return lines


@pytest.fixture
def lm(tiny: Callable[..., LM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LM:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    monkeypatch.setattr(own_text, "LENGTH", 12)
    return tiny("qwen3")


def test_the_text_in_front_of_prompts(lm: LM, said: list[str]) -> None:
    with listening(said.append):
        sample_prefixes(lm, "memit", 0)
    assert said[0].startswith(f"{lm.name} writes what stands in front of prompts, tokens: ")
    assert any("left" in line for line in said[1:])
    done = [int(line.partition("tokens: ")[2].partition("/")[0]) for line in said]
    assert done == sorted(done)
    total = sum(10 - len(lm.row(word).ids) for word in WORDS)  # five texts of ten tokens
    assert said[-1].partition("/")[2].startswith(f"{total},")


def test_ordinary_text_that_the_model_writes(lm: LM, said: list[str]) -> None:
    with listening(said.append):
        own_text.own_text(lm, 20, 100)
    assert len(said) > 5  # also within a batch of texts
    assert all(line.startswith(f"{lm.name} writes ordinary text, tokens: ") for line in said)


def test_moments_and_null_spaces(
    lm: LM, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The river flows through the town.\n\n" * 1500)
    with listening(said.append):
        get_moments(lm, [1], MomentSettings(moments_text=str(text), moments_samples=1500))
    assert any(line.startswith(f"second moments of {lm.name}, layers 1: ") for line in said)
    begun: list[str] = []

    class Noted:
        def __init__(self, label: str, say: object) -> None:
            begun.append(label)

        def start(self) -> None: ...

        def stop(self) -> None: ...

    monkeypatch.setattr(progress, "WaitLines", Noted)
    with listening(said.append):
        spectrum(torch.eye(6))
    assert begun == ["directions that keys use, of 6"]
