"""The closed forms of MEMIT, EMMET, PMET, AlphaEdit and BLUE against what the published code wrote.

Its keys, residuals, projectors and moments are given; only the solution is compared, in float64.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.golden.published import golden, input_of, stored
from tests.golden.published import near as nearly
from torch import Tensor

from errata.locate import joint, solve
from errata.locate.joint import Form, KeyMemory
from errata.locate.spectrum import NullSpace, null_space_of, spectrum

SOLVE = 1e-10
PROJECTOR = 1e-7  # the threshold sits in a spectral gap of one percent

FORMS: list[Form] = ["primal", "dual"]


@cache
def moment(reference: Path, model: str, layer: int) -> Tensor:
    return load_file(input_of(reference, f"moments_{model}.safetensors"))[f"mom2.{layer}"]


@cache
def factor(reference: Path, model: str, layer: int) -> solve.Factor:
    return solve.factor(moment(reference, model, layer))


def near(found: Tensor, expected: Tensor, tolerance: float = SOLVE) -> None:
    nearly(found, expected, tolerance)


def near_stored(found: tuple[Tensor, Tensor], expected: Tensor) -> None:
    B, A = found
    near(stored(B.T @ A, expected), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_memit(reference: Path, model: str, layer: int, form: Form) -> None:
    t, facts = golden(reference, "memit_batch6", model)
    layers = facts["hparams"]["layers"]
    residual = (t["z"] - t[f"layer{layer}.h_zlayer_current"]) / (len(layers) - layers.index(layer))
    near(residual, t[f"layer{layer}.resid"].T)
    weight = facts["hparams"]["mom2_update_weight"]
    found = joint.least_squares(
        residual, t[f"layer{layer}.keys"], factor(reference, model, layer), weight, form=form
    )
    near(found[1], t[f"layer{layer}.adj_k"].T)
    near_stored(found, t[f"layer{layer}.delta_weight"])


def test_emmet(reference: Path, model: str) -> None:
    t, facts = golden(reference, "emmet_batch6", model)
    h = facts["hparams"]
    w, mu = h["mom2_update_weight"], h["emmet_lambda"]
    C = factor(reference, model, 2)
    found = joint.equality(t["resid"].T, t["keys"], C, weight=w, slack=mu)
    near_stored(found, t["delta_weight"])
    near_stored(joint.least_squares(t["resid"].T, t["keys"], C, w * mu), t["delta_weight"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_pmet(reference: Path, model: str, layer: int, form: Form) -> None:
    t, facts = golden(reference, "pmet_batch6", model)
    layers = facts["hparams"]["layers"]
    left = len(layers) - layers.index(layer)
    residual = (t["z_mlp"] - t[f"layer{layer}.v_current_zlayer"]) / math.sqrt(left)
    weight = facts["hparams"]["mom2_update_weight"]
    found = joint.least_squares(
        residual, t[f"layer{layer}.keys"], factor(reference, model, layer), weight, form=form
    )
    near_stored(found, t[f"layer{layer}.delta_weight"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", [1, 3])
def test_blue_on_memit(reference: Path, model: str, ids: list[int], layer: int, form: Form) -> None:
    t, facts = golden(reference, "blue_memit_batch6", model)
    z = torch.stack([t[f"z.layer{layer}.{r}"] for r in ids])
    residual = z - t[f"h_current.layer{layer}"]
    near(residual, t[f"resid.layer{layer}"].T)
    weight = facts["hparams"]["mom2_update_weight"]
    found = joint.least_squares(
        residual, t[f"keys.layer{layer}"], factor(reference, model, layer), weight, form=form
    )
    near_stored(found, t[f"delta_weight.layer{layer}"])


def basis_of(P: Tensor, complement: bool) -> NullSpace:
    """The null space that a saved projector stands for."""
    values, vectors = torch.linalg.eigh(P)
    rank = round(float(values.sum()))
    unused, used = vectors[:, -rank:], vectors[:, :-rank]
    return NullSpace(used if complement else unused, complement, rank, 0.0, values)


@pytest.mark.parametrize("form", ["primal", "dual", "summed"])
@pytest.mark.parametrize("complement", [False, True], ids=["null space", "complement"])
@pytest.mark.parametrize(
    ("item", "layer"),
    [*(("alphaedit_2x3", layer) for layer in (1, 2, 3)),
     *(("blue_alphaedit_2x3", layer) for layer in (1, 3))],
)  # fmt: skip
def test_alphaedit_and_blue_on_it(
    reference: Path, model: str, ids: list[int], item: str, layer: int, form: str, complement: bool
) -> None:
    t, facts = golden(reference, item, model)
    h = facts["hparams"]
    P = t[f"P.layer{layer}"]
    basis = basis_of(P, complement)
    target = layer if "blue" in item else 3
    left = 1 if "blue" in item else len(h["layers"]) - h["layers"].index(layer)
    memory, gram = KeyMemory.empty(), torch.zeros_like(P)
    for batch, requests in enumerate([ids[:3], ids[3:]]):
        z = torch.stack([t[f"batch{batch}.z.layer{target}.{r}"] for r in requests])
        residual = (z - t[f"batch{batch}.h_current.layer{layer}"]) / left
        keys = t[f"batch{batch}.keys_before.layer{layer}"]
        expected = t[f"batch{batch}.delta_weight.layer{layer}"]
        if form == "summed":
            past, kind = KeyMemory(None, gram, 3 * batch), "primal"
        else:
            past, kind = memory, form
        near_stored(joint.null_space(residual, keys, basis, h["L2"], past, form=kind), expected)  # pyright: ignore[reportArgumentType]
        published = joint.null_space_as_published(residual, keys, P, h["L2"], gram)
        near(stored(published, expected), expected)
        memory = memory.add(t[f"batch{batch}.keys_after.layer{layer}"])
        gram = t[f"batch{batch}.cache.layer{layer}"]
        total = memory.total()
        assert total is not None
        near(total, gram)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_null_space(reference: Path, model: str, layer: int) -> None:
    t, facts = golden(reference, "alphaedit_2x3", model)
    values, vectors = spectrum(moment(reference, model, layer))
    basis = null_space_of(values, vectors, facts["hparams"]["nullspace_threshold"])
    assert basis.rank == facts["null_space_rank"][layer - 1]
    near(basis.projector(), t[f"P.layer{layer}"], PROJECTOR)
    near(basis.eigenvalues.flip(0), t[f"singular_values.layer{layer}"])
