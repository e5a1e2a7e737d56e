"""An edit as a value: what changes in a model, applied, undone, added, saved and exported.

Orientation: a projection computes `v = W k + b` with `W` of shape `d_out x d_in`, and a low-rank
change is `W += B A`. Only `errata.spec` and `errata.apply` know that some modules store the
transpose.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from errata import __version__
from errata.case import Edit
from errata.errors import PatchError

if TYPE_CHECKING:
    from pathlib import Path

    from errata.lm import LM

Where = Literal["input", "output", "both"]
_MODULES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], nn.Module]] = {}
_HOMES = {
    "rep": "errata.strategies._rep_adapter",
    "grace": "errata.editors._grace_codebook",
}
"""Kinds that other modules of errata register: imported when a patch holds one, which may be in a
process that has not edited anything."""
M = TypeVar("M", bound=Callable[..., nn.Module])


def module_kind(kind: str) -> Callable[[M], M]:
    """Register a class that a `Module` change of this kind builds from `(config, tensors)`."""

    def register(build: M) -> M:
        _MODULES[kind] = build
        return build

    return register


@dataclass(frozen=True)
class LowRank:
    """`W += B A` on the weight of one projection.

    Attributes:
        path: Dotted path of the module.
        B: `[d_out, r]`.
        A: `[r, d_in]`.
    """

    kind: ClassVar[str] = "low_rank"
    path: str
    B: Float[Tensor, "d_out r"]
    A: Float[Tensor, "r d_in"]

    def __post_init__(self) -> None:
        if self.B.ndim != 2 or self.A.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise PatchError(
                f"low-rank change of {self.path}: B is {tuple(self.B.shape)}, "
                f"A is {tuple(self.A.shape)}; expected d_out x r and r x d_in"
            )

    @property
    def rank(self) -> int:
        """Number of rank-one terms."""
        return self.A.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        return {"B": self.B, "A": self.A}

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {"kind": self.kind, "path": self.path}


@dataclass(frozen=True)
class Dense:
    """`parameter += delta`, for any parameter.

    Attributes:
        path: Name of the parameter.
        delta: In the parameter's stored shape.
    """

    kind: ClassVar[str] = "dense"
    path: str
    delta: Float[Tensor, ...]

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        return {"delta": self.delta}

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {"kind": self.kind, "path": self.path}


@dataclass(frozen=True)
class Module:
    """A small network in front of or behind a module of the model.

    Attributes:
        path: Dotted path of the module it hooks.
        name: Registered kind of network (`@module_kind`).
        config: What the kind needs besides tensors (JSON values).
        weights: Its tensors.
        where: `input` maps the module's first input, `output` its (first) output; `both` is given
            the two and returns what stands for the output.
    """

    kind: ClassVar[str] = "module"
    path: str
    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    where: Where = "output"

    def build(self) -> nn.Module:
        """Return the network: called with hidden states (`both`: two), it returns hidden states.

        Raises:
            PatchError: If this version of errata does not know the kind.
        """
        if self.name not in _MODULES and self.name in _HOMES:
            importlib.import_module(_HOMES[self.name])
        if self.name not in _MODULES:
            known = ", ".join(sorted({*_MODULES, *_HOMES}))
            raise PatchError(
                f"unknown kind of module {self.name!r} at {self.path}",
                f"Known: {known}. Was the patch made by a plug-in?",
            )
        return _MODULES[self.name](self.config, self.weights).eval()

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        return dict(self.weights)

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {
            "kind": self.kind,
            "path": self.path,
            "name": self.name,
            "config": dict(self.config),
            "where": self.where,
        }


Change = LowRank | Dense | Module


@module_kind("shift")
class Shift(nn.Module):
    """Adds one vector to the hidden states at every token.

    Args:
        config: Unused.
        tensors: `vector` of shape `[d]`.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.vector = tensors["vector"]

    def forward(self, hidden: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return `hidden + vector`, added in float32 at least."""
        vector = self.vector.to(hidden.device)
        return (hidden.to(torch.promote_types(hidden.dtype, vector.dtype)) + vector).to(
            hidden.dtype
        )


@dataclass(frozen=True)
class Patch:
    """A set of changes to one base model, with everything needed to prove where they came from.

    Attributes:
        changes: Applied together; changes of one parameter add up before they are rounded once.
        edits: The edits it carries out.
        state: What a lifelong editor needs next time: tensors, numbers or texts.
        meta: `model`, `revision`, `fingerprint`, `editor`, `config`, `errata`; JSON values.
    """

    changes: tuple[Change, ...] = ()
    edits: tuple[Edit, ...] = ()
    state: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def for_model(
        cls,
        lm: LM,
        changes: Sequence[Change] = (),
        *,
        editor: str,
        config: Mapping[str, Any] | None = None,
        edits: Sequence[Edit] = (),
        state: Mapping[str, Any] | None = None,
    ) -> Patch:
        """Build a patch of this model and record where it came from."""
        meta = {
            "model": lm.name,
            "revision": lm.revision,
            "fingerprint": lm.fingerprint,
            "editor": editor,
            "config": dict(config or {}),
            "errata": __version__,
        }
        return cls(tuple(changes), tuple(edits), dict(state or {}), meta)

    # ------------------------------------------------------------------ what it is

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not self.changes

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the changes (state left out)."""
        return sum(
            tensor.numel() * tensor.element_size()
            for change in self.changes
            for tensor in change.tensors().values()
        )

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the base model's weights, if the patch knows it."""
        return self.meta.get("fingerprint")

    def ranks(self) -> dict[str, int]:
        """Return the summed rank of the low-rank changes of each module."""
        total: dict[str, int] = {}
        for change in self.changes:
            if isinstance(change, LowRank):
                total[change.path] = total.get(change.path, 0) + change.rank
        return total

    def check(self, lm: LM) -> None:
        """Refuse a model this patch was not made for.

        Raises:
            PatchError: If the weight fingerprints differ, or a module is missing or of another
            shape.
        """
        if self.fingerprint is not None and self.fingerprint != lm.fingerprint:
            raise PatchError(
                f"this patch was made for {self.meta.get('model')} "
                f"(weights {self.fingerprint[:12]}), "
                f"not for {lm.name} (weights {lm.fingerprint[:12]})",
                "Load the model named in patch.json, with its revision.",
            )
        from errata.apply import check_changes

        check_changes(lm, self.changes)

    def check_finite(self) -> None:
        """Refuse NaN or infinite values.

        Raises:
            PatchError: Names the change.
        """
        for change in self.changes:
            for name, tensor in change.tensors().items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise PatchError(
                        f"the change of {change.path} holds NaN or infinite values in {name}"
                    )

    # ------------------------------------------------------------------ algebra

    def __add__(self, other: Patch) -> Patch:
        """Return both patches as one; the state and editor of `other` win.

        Raises:
            PatchError: If they belong to different base models.
        """
        if not isinstance(other, Patch):
            return NotImplemented
        if self.fingerprint and other.fingerprint and self.fingerprint != other.fingerprint:
            raise PatchError("these patches belong to different base models; they cannot be added")
        return Patch(
            self.changes + other.changes,
            self.edits + other.edits,
            {**self.state, **other.state},
            {**self.meta, **other.meta},
        )

    def scaled(self, factor: float) -> Patch:
        """Return the patch with its weight changes multiplied by `factor`.

        Raises:
            PatchError: If it contains modules, which have no strength.
        """
        changes: list[Change] = []
        for change in self.changes:
            if isinstance(change, LowRank):
                changes.append(replace(change, B=change.B * factor))
            elif isinstance(change, Dense):
                changes.append(replace(change, delta=change.delta * factor))
            else:
                raise PatchError(f"the {change.name} module at {change.path} cannot be scaled")
        return replace(self, changes=tuple(changes))

    def compact(self) -> Patch:
        """Return an equal patch with one low-rank change per module, factors side by side."""
        low: dict[str, list[LowRank]] = {}
        rest: list[Change] = []
        for change in self.changes:
            if isinstance(change, LowRank):
                low.setdefault(change.path, []).append(change)
            else:
                rest.append(change)
        merged: list[Change] = [
            LowRank(path, torch.cat([c.B for c in group], 1), torch.cat([c.A for c in group], 0))
            for path, group in low.items()
        ]
        return replace(self, changes=tuple(merged + rest))

    # ------------------------------------------------------------------ use

    @contextmanager
    def applied(self, lm: LM) -> Iterator[LM]:
        """Apply to the model inside a `with` block; afterwards it is bit for bit what it was."""
        from errata.apply import applied

        with applied(lm, self):
            yield lm

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write `patch.json` and `patch.safetensors`; see [`errata.patch_io.save`][]."""
        from errata.patch_io import save

        return save(self, folder, force=force)

    @classmethod
    def load(cls, folder: str | Path) -> Patch:
        """Read a patch folder; see [`errata.patch_io.load`][]."""
        from errata.patch_io import load

        return load(folder)
