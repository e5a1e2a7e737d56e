"""Weights that are no plain matrices in memory: on several devices, offloaded, or quantised.

Everything else in errata asks here for a weight by name and gets it in plain form: as it stands
where it is plain, read from where accelerate keeps it, or dequantised, one matrix at a time. What
is not plain is never written to: a patch works beside it, `W x + B A x`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.errors import ModelError

Model = TypeVar("Model", bound=nn.Module)

_PACKED = ("qweight", "W_q", "packed_weight", "weight_packed")  # GPTQ and AWQ, HQQ, others


def matrix_shape(module: nn.Module | None) -> tuple[int, int, bool] | None:
    """Return `(d_in, d_out, transposed)` of a projection, or None for any other module.

    The orientation comes from the type: `Conv1D` stores `d_in × d_out`; `nn.Linear` and its
    subclasses store `d_out × d_in`, and so does, unpacked, what stands in for them when a model is
    quantised.
    """
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1]), True
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features, False
    if isinstance(getattr(module, "number", None), int) and type(module).__name__ == "ExpertMatrix":
        expert: Any = module
        return expert.in_features, expert.out_features, False
    if module is not None and any(_has(module, name) for name in _PACKED):
        sizes = [
            size
            for end in ("in", "out")
            if isinstance(
                size := getattr(module, f"{end}_features", getattr(module, f"{end}features", None)),
                int,
            )
        ]
        if len(sizes) == 2:
            return sizes[0], sizes[1], False
    return None


def _has(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), Tensor)


# ---------------------------------------------------------------------- devices


def is_spread(model: nn.Module) -> bool:
    """Whether accelerate moves tensors around: several devices, or offloaded weights.

    Raises:
        ModelError: If weights have no values, here or offloaded.
    """
    kept: dict[int, set[str]] = {}
    for path, module in model.named_modules():
        for leaf, tensor in module.named_parameters(recurse=False):
            if not tensor.is_meta:
                continue
            if not _offloads(module):
                raise _nowhere(f"{path}.{leaf}")
            if not _is_kept(module, leaf, kept):
                raise ModelError(
                    f"the values of {path}.{leaf} were not offloaded: this release of transformers "
                    "leaves out what shares its values with another weight",
                    "Keep that module on a device in the map, or update transformers.",
                )
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _offloads(module: nn.Module) -> bool:
    return any(getattr(hook, "weights_map", None) is not None for hook in _hooks(module))


def _is_kept(module: nn.Module, leaf: str, kept: dict[int, set[str]]) -> bool:
    """Whether offloaded values of a parameter are there; names are read once per store."""
    for hook in _hooks(module):
        named = getattr(hook, "weights_map", None)
        store = getattr(named, "dataset", None)
        if named is None:
            continue
        if store is None:
            return True  # of another kind: it is asked when it is needed
        if id(store) not in kept:
            kept[id(store)] = set(store)
        names = kept[id(store)]
        if f"{named.prefix}{leaf}" in names:
            return True
    return False


def _nowhere(name: str) -> ModelError:
    return ModelError(
        f"the values of {name} are nowhere: it lies on the meta device",
        "Load the model with its weights: errata.load(MODEL); device='auto' offloads what does not "
        "fit.",
    )


def home_of(model: Any) -> torch.device:
    """Return the device on which the model takes its token ids."""
    embedding = model.get_input_embeddings()
    for hook in _hooks(embedding):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            # an ordinal alone means a GPU
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return embedding.weight.device


def embedding_of(model: Any) -> Tensor:
    """Return the token embedding, read from where it is offloaded."""
    module = model.get_input_embeddings()
    if not module.weight.is_meta:
        return module.weight
    path = next(name for name, other in model.named_modules() if other is module)
    return value_of(model, f"{path}.weight")


def _hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


# ---------------------------------------------------------------------- offloaded


def value_of(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer with its values: those of an offloaded one are read.

    Raises:
        ModelError: If it has no values anywhere.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    tensor = getattr(module, leaf)
    if not tensor.is_meta:
        return tensor
    for hook in _hooks(module):
        kept = getattr(hook, "weights_map", None)
        if kept is not None:
            return kept[leaf].to(tensor.dtype)
    raise _nowhere(name)


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights with their values in name order, tied ones once, one at a time.

    Raises:
        ModelError: If one has no values anywhere.
    """
    ties = getattr(model, "all_tied_weights_keys", None) or {}  # offloading unties them
    seen: set[object] = set()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor) or tensor.numel() == 0:
            continue
        parts = getattr(tensor, "__tensor_flatten__", None)
        if parts is not None:  # a quantised tensor that looks like a matrix
            for part in parts()[0]:
                yield f"{name}.{part}", getattr(tensor, part)
            continue
        key = ties.get(name, name) if tensor.is_meta else tensor.data_ptr()
        if key not in seen:
            seen.add(key)
            yield name, value_of(model, name) if tensor.is_meta else tensor


# ---------------------------------------------------------------------- quantised


def is_quantised(module: nn.Module | None) -> bool:
    """Whether a projection holds its weight in another form than as a matrix of numbers."""
    shape = matrix_shape(module)
    if module is None or shape is None:
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return True
    stored = shape[:2] if shape[2] else shape[1::-1]
    return tuple(weight.shape) != stored or hasattr(weight, "__tensor_flatten__")


def quantised_in(model: nn.Module) -> list[str]:
    """Return the paths of all quantised projections."""
    return [path for path, module in model.named_modules() if is_quantised(module)]


def keep_differentiable(model: Model) -> Model:
    """Return the model, having kept bitsandbytes from packing 4-bit weights once more.

    On processors with AVX512-BF16 it does so in the first pass without gradients. From then on the
    outputs of passes that gradients are taken of depend on nothing (0.50), and the weights read
    otherwise. Weights that were packed already are unpacked.
    """
    each: Any
    for each in model.modules():
        weight: Any = getattr(each, "weight", None)
        if type(weight).__name__ != "Params4bit":
            continue
        if hasattr(each, "support_avx512bf16_for_cpu"):
            each.support_avx512bf16_for_cpu = False
        if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
            from bitsandbytes.functional import (  # pyright: ignore[reportMissingImports]
                _convert_weight_packed_for_cpu_inverse,
            )

            weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(
                weight.data, weight.quant_state
            )
    return model


def dequantised(module: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """Return the weight of a quantised projection as a matrix: what it multiplies with."""
    shape = matrix_shape(module)
    assert shape is not None
    d_in, d_out, _ = shape
    found = _by_library(module)
    if found is None or not found.is_floating_point() or tuple(found.shape) != (d_out, d_in):
        found = _by_use(module, d_in)
    return found.detach()


@torch.no_grad()
def _by_library(module: nn.Module) -> Tensor | None:
    """Return the weight as the library that quantised it gives it; None if it does not."""
    weight: Any = getattr(module, "weight", None)
    kind = type(weight).__name__
    if kind == "Params4bit":
        from bitsandbytes.functional import (  # pyright: ignore[reportMissingImports]
            dequantize_4bit,
        )

        return dequantize_4bit(weight.data, weight.quant_state)
    if kind == "Int8Params":
        state: Any = getattr(module, "state", None)
        rows = weight.CB if getattr(weight, "CB", None) is not None else getattr(state, "CB", None)
        scale = weight.SCB if getattr(weight, "SCB", None) is not None else state.SCB
        rows = weight.data if rows is None else rows
        return rows.float() * scale.float()[:, None] / 127.0
    for name in ("dequantize", "dequantize_weight"):
        method = getattr(module, name, None)
        if callable(method):
            return method()  # pyright: ignore[reportReturnType]
    if hasattr(weight, "__tensor_flatten__"):
        return weight.dequantize()
    return None


@torch.no_grad()
def _by_use(module: nn.Module, d_in: int) -> Tensor:
    """Return the weight by multiplying with the identity, whatever the module's library."""
    given = next(iter(module.state_dict().values()))
    scale = next((t for t in module.state_dict().values() if t.is_floating_point()), None)
    dtype = torch.float32 if scale is None else scale.dtype
    columns = module(torch.eye(d_in, dtype=dtype, device=given.device))
    bias = getattr(module, "bias", None)
    return (columns if bias is None else columns - bias).T


# ---------------------------------------------------------------------- by name


def shape_of(model: nn.Module, name: str) -> tuple[int, ...]:
    """Return the shape of a parameter in plain form.

    Raises:
        AttributeError: If there is none of that name.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    shape = matrix_shape(module)
    if leaf == "weight" and shape is not None:
        return shape[:2] if shape[2] else shape[1::-1]
    return tuple(model.get_parameter(name).shape)


def read(model: nn.Module, name: str) -> Tensor:
    """Return a parameter in plain form: itself, read from where it is offloaded, or dequantised.

    Raises:
        AttributeError: If there is none of that name.
        ModelError: If it has no values anywhere.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf == "weight" and is_quantised(module):
        return dequantised(module)
    return value_of(model, name)


def not_plain(model: nn.Module, name: str) -> str | None:
    """Say why a parameter cannot be written to: `quantised (Linear4bit)`, `offloaded`; else None.

    Raises:
        AttributeError: If there is none of that name.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf == "weight" and is_quantised(module):
        return f"quantised ({type(module).__name__})"
    return "offloaded" if getattr(module, leaf).is_meta else None
