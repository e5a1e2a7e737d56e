"""Where changes act: modules and parameters of a model by name, and how a projection is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from errata.errors import PatchError

if TYPE_CHECKING:
    from errata.model.lm import LM


def parameter_of(lm: LM, name: str) -> nn.Parameter:
    """Return a parameter.

    Raises:
        PatchError: If the model has none of that name.
    """
    try:
        return lm.model.get_parameter(name)
    except AttributeError:
        raise PatchError(
            f"{lm.name} has no parameter {name}; the patch is for another model"
        ) from None


def module_of(lm: LM, path: str) -> nn.Module:
    """Return a module.

    Raises:
        PatchError: If the model has none of that path.
    """
    try:
        return lm.model.get_submodule(path)
    except AttributeError:
        raise PatchError(
            f"{lm.name} has no module {path}; the patch is for another model"
        ) from None


def is_transposed(module: nn.Module) -> bool:
    """Whether a projection stores its weight as `d_in x d_out`."""
    return isinstance(module, Conv1D)
