"""Where changes act: modules and parameters of a model by name, and how a projection is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.errors import PatchError
from errata.model.experts import ExpertMatrix
from errata.model.stored import matrix_shape, not_plain, shape_of

if TYPE_CHECKING:
    from errata.model.lm import LM


def parameter_of(lm: LM, name: str) -> nn.Parameter:
    """Return a parameter.

    Raises:
        PatchError: If the model has none of that name.
    """
    try:
        path, _, leaf = name.rpartition(".")
        module = _found(lm, path)
        if leaf == "weight" and isinstance(module, ExpertMatrix):
            return nn.Parameter(module.weight, requires_grad=False)  # the stack's own numbers
        return lm.model.get_parameter(name)
    except AttributeError:
        raise PatchError(
            f"{lm.name} has no parameter {name}; the patch is for another model"
        ) from None


def _found(lm: LM, path: str) -> nn.Module:
    """Return a module; the experts of a mixture are modules once the model was probed.

    Raises:
        AttributeError: If there is none of that path.
    """
    try:
        return lm.model.get_submodule(path)
    except AttributeError:
        lm.probe()
        return lm.model.get_submodule(path)


def module_of(lm: LM, path: str) -> nn.Module:
    """Return a module.

    Raises:
        PatchError: If the model has none of that path.
    """
    try:
        return _found(lm, path)
    except AttributeError:
        raise PatchError(
            f"{lm.name} has no module {path}; the patch is for another model"
        ) from None


def stored_shape(lm: LM, name: str) -> tuple[int, ...]:
    """Return the shape of a parameter as it is stored, or would be if it were not quantised.

    Raises:
        PatchError: If the model has none of that name.
    """
    try:
        _found(lm, name.rpartition(".")[0])
        return shape_of(lm.model, name)
    except AttributeError:
        parameter_of(lm, name)
        raise


def device_of(lm: LM, name: str) -> torch.device:
    """Return the device where a change of a parameter is added up: its own, if it has one."""
    path, _, leaf = name.rpartition(".")
    tensor = getattr(module_of(lm, path), leaf, None)
    return lm.device if not isinstance(tensor, Tensor) or tensor.is_meta else tensor.device


def is_projection(module: nn.Module) -> bool:
    """Whether a module multiplies with a matrix, or with something that stands in for one."""
    return matrix_shape(module) is not None or hasattr(module, "weight")


def beside(lm: LM, name: str) -> str | None:
    """Say why a change cannot be added to a parameter in place; None: it can.

    What is quantised or offloaded is not written to: a change works beside it.
    """
    try:
        _found(lm, name.rpartition(".")[0])
        return not_plain(lm.model, name)
    except AttributeError:
        parameter_of(lm, name)
        raise


def is_transposed(module: nn.Module) -> bool:
    """Whether a projection stores its weight as `d_in x d_out`."""
    return isinstance(module, Conv1D)
