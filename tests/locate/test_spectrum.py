"""Null spaces of second moments (oracle T6), and what is kept of them on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from errata.errors import EditError, ErrataError
from errata.locate import solve
from errata.locate import spectrum as spectrum_module
from errata.locate.moments import Moment
from errata.locate.spectrum import (
    NullSpace,
    get_factor,
    get_null_space,
    null_space_of,
    spectrum,
)
from errata.model.lm import LM
from errata.store import cache

F = 24
TOLERANCE = 1e-12  # orthonormal columns in float64
EIGENVALUES = torch.logspace(-4, 1, F, dtype=torch.float64)


@pytest.fixture(scope="module")
def C() -> Tensor:
    """A moment with a known spectrum."""
    g = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(F, F, generator=g, dtype=torch.float64))
    return (Q * EIGENVALUES) @ Q.T


def near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("threshold", [1e-5, 3e-4, 2e-2, 1.0, 100.0])
def test_T6_the_projector(C: Tensor, threshold: float) -> None:
    values, vectors = spectrum(C)
    near(values, EIGENVALUES)
    found = null_space_of(values, vectors, threshold)
    P = found.projector()
    assert found.rank == int((EIGENVALUES < threshold).sum())
    assert found.threshold == threshold
    assert found.basis.shape[1] == min(found.rank, F - found.rank)
    near(P, P.T)
    near(P @ P, P)
    assert float(P.trace()) == pytest.approx(found.rank, abs=1e-10)
    # the published construction: an SVD, and the columns below the threshold
    U, s, _ = torch.linalg.svd(C)
    unused = U[:, s < threshold]
    near(P, unused @ unused.T, 1e-9)
    rows = torch.randn(5, F, generator=torch.Generator().manual_seed(1))
    near(found.project(rows), rows.double() @ P)
    assert found.size == F
    assert found.to("cpu").rank == found.rank


def test_a_relative_threshold_follows_the_scale_of_the_keys(C: Tensor) -> None:
    def of(matrix: Tensor, threshold: float, relative: bool) -> NullSpace:
        return null_space_of(*spectrum(matrix), threshold, relative=relative)

    one, scaled = of(C, 0.01, True), of(900 * C, 0.01, True)
    assert one.rank == scaled.rank
    near(one.projector(), scaled.projector(), 1e-9)
    assert one.threshold == pytest.approx(0.01 * float(EIGENVALUES.mean()))
    assert of(C, 0.02, False).rank != of(900 * C, 0.02, False).rank


def test_rank_zero_is_said(C: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = null_space_of(*spectrum(C), 1e-9)
    assert found.rank == 0
    assert not found.projector().any()
    assert "make it relative" in caplog.text


def test_a_crooked_sum_is_symmetrised(C: Tensor) -> None:
    noise = torch.randn(F, F, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    near(spectrum(C + noise - noise.T)[0], EIGENVALUES)


def test_nan_is_refused(C: Tensor) -> None:
    broken = C.clone()
    broken[0, 1] = float("nan")
    with pytest.raises(EditError, match="NaN"):
        spectrum(broken)


# ---------------------------------------------------------------------- kept on disk


class Calls:
    """Counts what is computed, as against loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.factors = self.spectra = 0
        factor, spectrum = spectrum_module.factor, spectrum_module.spectrum

        def counted_factor(*args, **kwargs):
            self.factors += 1
            return factor(*args, **kwargs)

        def counted_spectrum(*args):
            self.spectra += 1
            return spectrum(*args)

        monkeypatch.setattr(spectrum_module, "factor", counted_factor)
        monkeypatch.setattr(spectrum_module, "spectrum", counted_spectrum)
        monkeypatch.setattr(spectrum_module, "FACTOR_CACHED_FROM", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@pytest.fixture
def lm(tiny: Callable[..., LM]) -> LM:
    return tiny("gpt2")


def test_a_factor_is_computed_once(lm: LM, C: Tensor, calls: Calls, cache_folder: Path) -> None:
    moment = Moment(C.float(), 1000)
    one, again = (get_factor(lm, 1, moment, 1e-3) for _ in range(2))
    assert calls.factors == 1
    expected = solve.factor(moment.matrix, ridge=1e-3)
    for found in (one, again):
        assert torch.equal(found.lower, expected.lower)
        assert found.ridge == expected.ridge
    (path,) = cache_folder.rglob("*.safetensors")
    assert path.name.endswith("-layer1-cholesky.safetensors")


def test_small_factors_are_not_kept(
    lm: LM, C: Tensor, calls: Calls, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrum_module, "FACTOR_CACHED_FROM", F + 1)
    found = [get_factor(lm, 1, Moment(C, 1000)) for _ in range(2)]
    assert calls.factors == 2
    assert torch.equal(found[0].lower, found[1].lower)
    assert not list(cache_folder.rglob("*.safetensors"))


def test_one_spectrum_serves_every_threshold(lm: LM, C: Tensor, calls: Calls) -> None:
    moment = Moment(C, 1000)
    for threshold, relative in ((2e-2, False), (2e-2, False), (1.0, False), (0.1, True)):
        found = get_null_space(lm, 2, moment, threshold, relative=relative)
        expected = null_space_of(*spectrum(C), threshold, relative=relative)
        assert found.rank == expected.rank
        assert torch.equal(found.basis, expected.basis)
        assert torch.equal(found.eigenvalues, expected.eigenvalues)
    assert calls.spectra == 1


def test_the_rank_is_reported(lm: LM, C: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = get_null_space(lm, 2, Moment(C, 1000))
    assert f"rank {found.rank} of {F}" in caplog.text


def test_another_moment_layer_ridge_or_model_is_another_entry(
    tiny: Callable[..., LM], lm: LM, C: Tensor, calls: Calls
) -> None:
    get_factor(lm, 1, Moment(C, 1000))
    changed = C.clone()
    changed[0, 0] += 1e-9
    get_factor(lm, 1, Moment(changed, 1000))
    get_factor(lm, 1, Moment(C.float(), 1000))
    get_factor(lm, 1, Moment(C, 1000), 1e-6)
    get_factor(lm, 2, Moment(C, 1000))
    get_factor(tiny("llama"), 1, Moment(C, 1000))
    assert calls.factors == 6


@pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
def test_a_broken_file_is_built_again(
    lm: LM, C: Tensor, calls: Calls, cache_folder: Path, damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    moment = Moment(C, 1000)
    whole = get_null_space(lm, 0, moment), get_factor(lm, 0, moment)
    for path in cache_folder.rglob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        kept = {"cut": len(data) // 2, "altered": len(data), "empty": 0}[damage]
        path.write_bytes(bytes(data[:kept]))
    with caplog.at_level(logging.WARNING):
        again = get_null_space(lm, 0, moment), get_factor(lm, 0, moment)
    assert (calls.spectra, calls.factors) == (2, 2)
    assert caplog.text.count("; it is built again") == 2
    assert torch.equal(whole[0].basis, again[0].basis)
    assert torch.equal(whole[1].lower, again[1].lower)
    get_null_space(lm, 0, moment)
    assert calls.spectra == 2  # mended


def test_a_full_disk_costs_only_the_cache(
    lm: LM, C: Tensor, calls: Calls, cache_folder: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def full(path: Path, data: bytes) -> None:
        raise ErrataError(f"cannot write {path}: No space left on device", "Free some space.")

    monkeypatch.setattr(cache, "write_atomically", full)
    with caplog.at_level(logging.WARNING):
        found = get_null_space(lm, 0, Moment(C, 1000))
        factor = get_factor(lm, 0, Moment(C, 1000))
    assert torch.equal(found.basis, null_space_of(*spectrum(C)).basis)
    assert torch.equal(factor.lower, solve.factor(C).lower)
    assert caplog.text.count("No space left") == 2
    assert not list(cache_folder.rglob("*.safetensors"))


def test_a_moment_that_cannot_be_factored_leaves_no_file(
    lm: LM, calls: Calls, cache_folder: Path
) -> None:
    with pytest.raises(EditError, match="zero"):
        get_factor(lm, 0, Moment(torch.zeros(F, F), 10))
    assert not list(cache_folder.rglob("*.safetensors"))
