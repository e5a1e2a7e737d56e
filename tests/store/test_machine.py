"""How fast a machine multiplies: measured once, kept per processor."""

from __future__ import annotations

import json

import pytest
import torch

from errata.store import machine
from errata.store.machine import speed_of


def test_the_machine_is_measured_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    measured: list[float] = []

    def measure(device: torch.device, dtype: torch.dtype) -> float:
        measured.append(3.0 + len(measured))
        return measured[-1]

    monkeypatch.setattr(machine, "_measured", measure)
    device = torch.device("cpu")
    bfloat16 = torch.bfloat16
    assert [speed_of(bfloat16, device), speed_of(bfloat16, device)] == [3.0, 3.0]
    path = tmp_path / "machine" / "bfloat16.json"
    assert list(json.loads(path.read_text()).values()) == [3.0]
    path.write_text("{half")
    assert speed_of(bfloat16, device) == 4.0
    path.write_text('["a list"]')
    assert speed_of(bfloat16, device) == 5.0
    assert speed_of(torch.float16, device) == 6.0, "each type has a figure of its own"
    assert speed_of(torch.float16, device) == 6.0


def test_processors_of_one_name_are_told_apart(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "_measured", lambda device, dtype: 3.0)
    real = open
    for number, flags in enumerate(("fpu avx2", "fpu avx2 avx512f avx512_bf16", "fpu avx2")):
        told = tmp_path / f"cpuinfo{number}"
        told.write_text(f"processor : 0\nmodel name : AMD EPYC\nflags : {flags}\n")
        monkeypatch.setattr(
            "builtins.open", lambda path, *a, told=told, **k: real(
                told if path == "/proc/cpuinfo" else path, *a, **k
            )
        )  # fmt: skip
        speed_of(torch.bfloat16, torch.device("cpu"))
    names = list(json.loads((tmp_path / "machine" / "bfloat16.json").read_text()))
    assert [name.partition(" torch ")[0] for name in names] == [
        "cpu AMD EPYC avx2", "cpu AMD EPYC avx2 avx512f avx512_bf16",
    ]  # fmt: skip


def test_the_measurement_is_a_ratio() -> None:
    assert machine._measured(torch.device("cpu"), torch.bfloat16, rows=8, width=32, rounds=3) > 0
