"""Units beside an FFN as part of it: a plain checkpoint whose FFNs are a few units wider.

A checkpoint has one inner width for all blocks, so every FFN gets as many more units; in the other
blocks they are zero, which changes nothing. What the configuration calls that width is found by
trying: the setting that, raised, changes the shapes of the FFNs' matrices and no others.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from errata.errors import PatchError
from errata.model.compat import quiet_transformers
from errata.model.spec import Site, weight_of
from errata.patch.changes import Module
from errata.patch.changes.base import KEEP, fitting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from errata.model.lm import LM

UNSET = ("inner", "ffn", "intermediate")
"""A setting that is None may be the inner width if its name contains one of these."""


@dataclass(frozen=True)
class Widening:
    """What makes a model wide enough for some units.

    Attributes:
        units: Changes with units, by block.
        extra: Units that every FFN gets.
        config: Configuration of the wider model.
    """

    units: dict[int, list[Module]]
    extra: int
    config: Any

    @classmethod
    def of(cls, lm: LM, units: Sequence[Module]) -> Widening:
        """Find the configuration.

        Raises:
            PatchError: If units have biases where the FFN has none, or sit elsewhere than at an
                FFN, or the model's configuration does not have the inner width as a setting.
        """
        by_block: dict[int, list[Module]] = {}
        for change in units:
            layer = lm.spec.layer_of(change.path)
            if change.path != lm.site(layer).path:
                raise PatchError(f"{change.label} does not belong to an FFN of {lm.name}", KEEP)
            biases = change.weights.get("biases")
            bare = [site.path for site in lm.spec.ffn_in[layer] if not site.bias]
            if bare and biases is not None and bool(biases.any()):
                raise PatchError(
                    f"the units at {change.path} have biases, but {bare[0]} has none",
                    "Edit with --set bias=false, or keep the patch folder.",
                )
            by_block.setdefault(layer, []).append(change)
        extra = max(sum(map(_count, own)) for own in by_block.values())
        return cls(by_block, extra, _wider_config(lm, extra))

    def model(self, lm: LM) -> PreTrainedModel:
        """Return the wider model; apart from the FFNs it shares its tensors with `lm`."""
        state = {name: tensor.detach() for name, tensor in lm.model.state_dict().items()}
        for layer in range(lm.n_layers):
            own = self.units.get(layer, [])
            with fitting(own[0].label if own else "the wider model"):
                state |= self._wider(lm, layer, own)
        model = _on_meta(lm, self.config)
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        model.generation_config = lm.model.generation_config
        return model.eval()

    def _wider(self, lm: LM, layer: int, units: Sequence[Module]) -> dict[str, Tensor]:
        """Return the matrices of a block's FFN, with the units in them."""
        found: dict[str, Tensor] = {}
        for site, part in _parts(lm, layer):
            found |= self._wider_in(lm, site, part, units)
        site = lm.site(layer)
        weight = weight_of(lm.model, site)
        values = [change.weights["values"] for change in units]
        more = _padded(values, weight, (self.extra, site.d_out)).T
        return {**found, site.weight: _stored(torch.cat([weight, more], 1), site)}

    def _wider_in(
        self, lm: LM, site: Site, parts: Sequence[int], units: Sequence[Module]
    ) -> dict[str, Tensor]:
        """Return weight and bias of a first matrix with more rows; `parts`: what its rows are."""
        weight = weight_of(lm.model, site)
        bias = lm.model.get_parameter(f"{site.path}.bias") if site.bias else None
        size = site.d_out // len(parts)
        rows, biases = [], []
        for number, part in enumerate(parts):
            own = slice(number * size, (number + 1) * size)
            # in blocks with units their configuration says which matrix is the gate
            numbers = [_number(unit, site, part) for unit in units]
            keys = [u.weights["keys"][i] for u, i in zip(units, numbers, strict=True)]
            rows += [weight[own], _padded(keys, weight, (self.extra, site.d_in))]
            if bias is not None:
                given = [
                    u.weights["biases"][i] if "biases" in u.weights else torch.zeros(_count(u))
                    for u, i in zip(units, numbers, strict=True)
                ]
                biases += [bias[own], _padded(given, bias, (self.extra,))]
        found = {site.weight: _stored(torch.cat(rows), site)}
        if bias is not None:
            found[f"{site.path}.bias"] = torch.cat(biases)
        return found


def _count(change: Module) -> int:
    return len(change.weights["values"])


def _parts(lm: LM, layer: int) -> Iterator[tuple[Site, tuple[int, ...]]]:
    """Yield a block's first matrices, each with the numbers of what its rows compute."""
    sites, width = lm.spec.ffn_in[layer], lm.site(layer).d_in
    for number, site in enumerate(sites):
        yield site, (0, 1) if len(sites) == 1 and site.d_out == 2 * width else (number,)


def _number(unit: Module, site: Site, part: int) -> int:
    """Return which of a unit's keys belongs to a part of a first matrix."""
    return part if unit.config["fused"] else list(unit.config["inputs"]).index(site.path)


def _padded(pieces: Sequence[Tensor], like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the pieces one below the other, filled up with zeros."""
    filled = like.new_zeros(shape)
    at = 0
    for piece in pieces:
        filled[at : at + len(piece)] = piece.to(filled)
        at += len(piece)
    return filled


def _stored(weight: Tensor, site: Site) -> Tensor:
    return (weight.T if site.transposed else weight).contiguous()


# ---------------------------------------------------------------------- the configuration


def _on_meta(lm: LM, config: Any) -> PreTrainedModel:
    """Build a model without memory for its weights."""
    with torch.device("meta"), quiet_transformers():
        model = type(lm.model)(config)
        model.tie_weights()  # older releases leave this to the loading of weights
        return model


def _wider_config(lm: LM, extra: int) -> Any:
    """Return the model's configuration with FFNs of `extra` more units.

    Raises:
        PatchError: If no single setting is the inner width.
    """
    widths = {site.d_in for site in lm.spec.ffn_out}
    width = lm.spec.d_ffn
    wanted = _shapes(lm, extra)
    settings = lm.model.config.get_text_config().to_dict()
    same = [name for name, value in settings.items() if value is not True and value == width]
    unset = [n for n, v in settings.items() if v is None and any(part in n for part in UNSET)]
    for name in (*same, *unset) if len(widths) == 1 else ():
        config = copy.deepcopy(lm.model.config)
        try:
            setattr(config.get_text_config(), name, width + extra)
            model = _on_meta(lm, config)
        except (ValueError, TypeError, RuntimeError, AssertionError, AttributeError):
            continue  # a width that something else depends on
        if _shapes_of(model) == wanted:
            return config
    raise PatchError(
        f"the inner width of the FFNs is no setting of its own in the configuration of {lm.name} "
        f"({type(lm.model.config).__name__}): units cannot become part of a checkpoint",
        KEEP,
    )


def _shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _shapes(lm: LM, extra: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters once every FFN has `extra` more units."""
    shapes = _shapes_of(lm.model)
    for layer in range(lm.n_layers):
        second = lm.site(layer)
        shapes[second.weight] = _shape(second.d_out, second.d_in + extra, second)
        for site, parts in _parts(lm, layer):
            rows = site.d_out + extra * len(parts)
            shapes[site.weight] = _shape(rows, site.d_in, site)
            if site.bias:
                shapes[f"{site.path}.bias"] = (rows,)
    return shapes


def _shape(d_out: int, d_in: int, site: Site) -> tuple[int, int]:
    return (d_in, d_out) if site.transposed else (d_out, d_in)
