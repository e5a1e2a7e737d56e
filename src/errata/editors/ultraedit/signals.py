"""What UltraEdit reads of the model, and the change that keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import ConfigError, PatchError
from errata.model.lm import LM
from errata.model.spec import Site
from errata.model.tokens import Row
from errata.nets.capture import capture
from errata.nets.lifelong import RowStats, wanted
from errata.patch import Patch, Ridge, change_kind

Signal = tuple[Float[Tensor, "n f"], Float[Tensor, "n d"]]
"""Keys of the answer tokens of one edit, and gradients of its loss at the output."""


@change_kind("ultraedit")
@dataclass(frozen=True, eq=False, repr=False)
class Standardised(Ridge):
    """A ridge change whose rows are signals; what outputs gain follows from all of them together.

    Attributes:
        lr: Size of the step.
        whiten: Whether gradients are decorrelated.
    """

    kind: ClassVar[str] = "ultraedit"
    lr: float = 1e-6
    whiten: bool = False

    @staticmethod
    def gains(
        keys: Float[Tensor, "n f"], values: Float[Tensor, "n d"], **more: Any
    ) -> Float[Tensor, "n d"]:
        """Return what one turn of all the edits asks for: `values` are gradients."""
        whiten = bool(more.get("whiten"))
        stats = RowStats.empty(keys.shape[1], values.shape[1], whiten, keys.device)
        stats = stats.add(torch.cat([keys, values], 1))
        if stats.count < 2:
            return torch.zeros_like(values)
        standard = stats.standard(keys, values, whiten=whiten)
        return wanted(*standard, float(more["lr"])).to(values.dtype)

    @property
    def more(self) -> dict[str, Any]:
        """The settings that gains depend on."""
        return {"lr": self.lr, "whiten": self.whiten}

    @classmethod
    def kept(cls, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a saved change."""
        lr = entry.get("lr")
        if not isinstance(lr, int | float):
            raise PatchError(f"the change of {entry.get('path')} does not say its lr")
        return {"lr": float(lr), "whiten": bool(entry.get("whiten"))}


def own_changes(patch: Patch, maker: str) -> list[Ridge]:
    """Return the changes of a patch that an editor goes on with."""
    return [c for c in patch.changes if isinstance(c, Ridge) and c.maker == maker]


def signals_of(
    lm: LM, sites: Sequence[tuple[int, Site]], rows: Sequence[Row]
) -> list[list[Signal]]:
    """Return for each row its signal at every site: of the sum, not the mean, of token losses."""
    factors = capture(lm, sites, rows)
    return [
        [
            (f.h[number, list(row.positions)], f.u[number, list(row.positions)] * len(row.labels))
            for f in factors
        ]
        for number, row in enumerate(rows)
    ]


def shape_of(site: Site) -> str:
    """Return what matrices have to share to share their statistics."""
    return f"{site.d_in}x{site.d_out}"


def inner_site(lm: LM, layer: int, kind: str) -> Site:
    """Return the gate matrix of a block's FFN, or the other inner one.

    Raises:
        ConfigError: If the FFN has no gate of its own.
    """
    sites = lm.spec.ffn_in[layer]
    gates = [site for site in sites if "gate" in site.path.rpartition(".")[2]]
    if len(sites) == 2 and not gates:
        gates = [sites[0]]
    chosen = gates if kind == "gate" else [site for site in sites if site not in gates] or gates
    if len(chosen) != 1 or (kind == "gate" and len(sites) < 2):
        raise ConfigError(
            f"block {layer} of {lm.name} has no {kind} matrix of its own",
            "Its inner matrices: " + (", ".join(site.path for site in sites) or "none"),
        )
    return chosen[0]
