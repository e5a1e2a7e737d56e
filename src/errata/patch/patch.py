"""An edit as a value: what changes in a model, applied, undone, added, saved and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from errata import __version__
from errata.arguments import all_of
from errata.case import Chat, Edit, Probe
from errata.data._records import freeze, thaw
from errata.errors import PatchError
from errata.model.weights import Identity, differs, identity
from errata.patch.changes import Change, LowRank, Module, Route
from errata.store.provenance import now

if TYPE_CHECKING:
    from pathlib import Path

    from errata.model.lm import LM
    from errata.patch.compare import Comparison
    from errata.patch.export import LoraReport
    from errata.patch.gguf_adapter import GgufReport
    from errata.patch.report import Report

Named = TypeVar("Named", Module, Route)


LOAD_PATCH = "Type: errata.Patch.load(FOLDER)"


@dataclass(frozen=True, eq=False, repr=False)
class Patch:
    """A set of changes to one base model, with everything needed to prove where they came from.

    Two patches are equal if they are the same object.

    Attributes:
        changes: Applied together; changes of one parameter add up before they are rounded once.
        edits: The edits it carries out.
        state: What a lifelong editor needs next time: tensors, numbers or texts.
        meta: `model`, `revision`, `fingerprint`, `fingerprint_float16`, `dtype`, `editor`,
            `config`, `blocks_from`, `moments_from`, `settings_from`, `sheet`, `errata`, `made`;
            JSON values, read-only.
        results: For each edit what the model answered before and after it (`taken`, `p_before`,
            `p_after`, `says_after` …), as far as it was asked; empty if it was not.
        aftermath: What else was asked when it was made (neighbours, general sentences, earlier
            edits …), JSON values, read-only; `report` reads it.
    """

    changes: tuple[Change, ...] = ()
    edits: tuple[Edit, ...] = ()
    state: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    results: tuple[Mapping[str, Any] | None, ...] = ()
    aftermath: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name, kind in (("changes", Change), ("edits", Edit)):
            held = all_of(getattr(self, name), kind, name, f"a list of {name}")
            object.__setattr__(self, name, held)
        object.__setattr__(self, "meta", freeze(self.meta))
        object.__setattr__(self, "results", freeze(self.results))
        object.__setattr__(self, "aftermath", freeze(self.aftermath))
        if self.results and len(self.results) != len(self.edits):
            raise PatchError(f"{len(self.results)} results for {len(self.edits)} edits")

    def __getstate__(self) -> dict[str, Any]:
        # read-only views cannot be copied or sent to another process
        own = {**self.__dict__, "state": dict(self.state)}
        return own | {name: thaw(own[name]) for name in ("meta", "results", "aftermath")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def __repr__(self) -> str:
        from errata.patch.describe import brief

        return brief(self)

    def _repr_html_(self) -> str:
        from errata.patch.describe import html

        return html(self)

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
        sources: Mapping[str, str] | None = None,
    ) -> Patch:
        """Build a patch of this model and record where it came from.

        Args:
            lm: The model.
            changes: What changes.
            editor: Name of the editor that made it.
            config: Its settings.
            edits: What it carries out.
            state: What the editor needs next time.
            sources: Where the editor's choices come from: `blocks_from`, `moments_from` …
        """
        meta = {
            "model": lm.name,
            "revision": lm.revision,
            **identity(lm).record(),
            "editor": editor,
            "config": dict(config or {}),
            "errata": __version__,
            **(sources or {}),
            **({"compute": "bfloat16"} if lm.rounded else {}),
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

    @property
    def base(self) -> Identity | None:
        """Which weights its base model has, if the patch knows it."""
        return Identity.recorded(self.meta)

    @property
    def report(self) -> Report:
        """What became of its edits and what else moved, as far as it was asked."""
        from errata.patch.report import Report

        return Report.of(self)

    def ranks(self) -> dict[str, int]:
        """Return the summed rank of the low-rank changes of each module."""
        total: dict[str, int] = {}
        for change in self.changes:
            if change.factors is not None:
                total[change.path] = total.get(change.path, 0) + change.factors[0].shape[1]
        return total

    def check(self, lm: LM) -> None:
        """Refuse a model this patch was not made for.

        Raises:
            PatchError: If it has other weights, or a module is missing or of another shape.
        """
        base = self.base
        if base is not None and not base.same(identity(lm)):
            raise PatchError(
                f"this patch was made for {self.meta.get('model')} ({base}), "
                f"not for {lm.name} ({identity(lm)})",
                differs(
                    base, identity(lm), "Load the model named in patch.json, with its revision."
                ),
            )
        for change in self.changes:
            change.check(lm)

    def check_finite(self) -> None:
        """Refuse NaN or infinite values.

        Raises:
            PatchError: Names the change.
        """
        for change in self.changes:
            for name, tensor in change.tensors().items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise PatchError(f"{change.label} holds NaN or infinite values in {name}")

    def on(self, device: torch.device) -> Patch:
        """Return the patch with what lies on the processor, as of a file, on another device.

        The patch itself, and its own changes, where nothing has to move.
        """
        if device.type == "cpu":
            return self

        def moved(value: Any) -> Any:
            far = isinstance(value, torch.Tensor) and value.ndim and value.device != device
            return value.to(device) if far and value.device.type == "cpu" else value

        def here(change: Change) -> Change:
            held = change.tensors()
            there = {name: moved(tensor) for name, tensor in held.items()}
            if all(there[name] is held[name] for name in held):
                return change
            return type(change).from_entry(change.describe(), there)

        changes = tuple(here(change) for change in self.changes)
        state = {name: moved(value) for name, value in self.state.items()}
        same = all(a is b for a, b in zip(changes, self.changes, strict=True))
        if same and all(state[name] is self.state[name] for name in state):
            return self
        return replace(self, changes=changes, state=state)

    def split(self, name: str, of: type[Named]) -> tuple[Patch, list[Named]]:
        """Return the patch without its modules (or routes) of a registered kind, and those."""
        own = [c for c in self.changes if isinstance(c, of) and c.name == name]
        rest = tuple(c for c in self.changes if not any(c is change for change in own))
        return replace(self, changes=rest), own

    # ------------------------------------------------------------------ algebra

    def __add__(self, other: Patch) -> Patch:
        """Return both patches as one; the state and editor of `other` win.

        Results are left out: they were those of each patch alone.

        Raises:
            PatchError: If they belong to different base models.
        """
        if not isinstance(other, Patch):
            return NotImplemented
        if self.base and other.base and not self.base.same(other.base):
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
            PatchError: If it contains modules, routes or contexts, which have no strength.
        """
        changes = tuple(change.scaled(factor) for change in self.changes)
        return replace(self, changes=changes, results=(), aftermath={})

    def without(self, *edits: str | int | Edit) -> Patch:
        """Return the patch that would have been built without some of its edits.

        See [`errata.patch.removal.remove`][]; for editors free of order, and no others.
        """
        from errata.patch.removal import remove

        return remove(self, edits)

    def dated(self) -> Patch:
        """Return the patch with the time of this moment as `made`; an editor alone notes no time.

        So two patches of the same request are the same, whenever they are made.
        """
        return replace(self, meta={**self.meta, "made": now()})

    def compact(self) -> Patch:
        """Return an equal patch with one low-rank change per module, factors side by side.

        Changes from which single edits can be taken back stay as they are.
        """
        low: dict[str, list[tuple[Tensor, Tensor]]] = {}
        rest: list[Change] = []
        for change in self.changes:
            if change.factors is not None and not change.held:
                low.setdefault(change.path, []).append(change.factors)
            else:
                rest.append(change)
        merged: list[Change] = [
            LowRank(path, torch.cat([B for B, _ in group], 1), torch.cat([A for _, A in group], 0))
            for path, group in low.items()
        ]
        return replace(self, changes=tuple(merged + rest))

    # ------------------------------------------------------------------ use

    @contextmanager
    def applied(self, lm: LM) -> Iterator[LM]:
        """Apply to the model inside a `with` block; afterwards it is bit for bit what it was."""
        from errata.patch.in_place import applied

        with applied(lm, self):
            yield lm

    def compare(
        self,
        lm: LM,
        prompts: Sequence[str | Edit | Probe],
        targets: Sequence[str | None] | None = None,
        *,
        k: int = 5,
        new_tokens: int = 8,
        chat: Chat = "off",
        system: str | None = None,
    ) -> Comparison:
        """Ask the same prompts without and with this patch; see [`errata.patch.compare.compare`][].

        ```python
        print(patch.compare(lm, ["The capital of France is"]).table())
        ```
        """
        from errata.patch.compare import compare

        return compare(
            lm, self, prompts, targets, k=k, new_tokens=new_tokens, chat=chat, system=system
        )

    def to_lora(
        self, lm: LM, folder: str | Path, *, max_rank: int | None = None, force: bool = False
    ) -> LoraReport:
        """Write a PEFT LoRA folder; see [`errata.patch.export.to_lora`][]."""
        from errata.patch.export import to_lora

        return to_lora(lm, self, folder, max_rank=max_rank, force=force)

    def to_gguf(
        self,
        lm: LM,
        folder: str | Path,
        *,
        base: str | None = None,
        max_rank: int | None = None,
        force: bool = False,
    ) -> GgufReport:
        """Write an adapter for llama.cpp; see [`errata.patch.gguf_adapter.to_gguf`][]."""
        from errata.patch.gguf_adapter import to_gguf

        return to_gguf(lm, self, folder, base=base, max_rank=max_rank, force=force)

    def to_merged(
        self,
        lm: LM,
        folder: str | Path,
        *,
        max_shard_size: str | None = None,
        as_stored: bool = False,
        force: bool = False,
    ) -> Path:
        """Write the patched model as a checkpoint; see [`errata.patch.export.to_merged`][]."""
        from errata.patch.export import to_merged

        return to_merged(
            lm, self, folder, max_shard_size=max_shard_size, as_stored=as_stored, force=force
        )

    @classmethod
    def from_gguf(cls, lm: LM, source: str | Path) -> Patch:
        """Read an adapter of llama.cpp; see [`errata.patch.gguf_adapter.from_gguf`][]."""
        from errata.patch.gguf_adapter import from_gguf

        return from_gguf(lm, source)

    @classmethod
    def from_lora(cls, lm: LM, folder: str | Path) -> Patch:
        """Read a PEFT LoRA folder; see [`errata.patch.export.from_lora`][]."""
        from errata.patch.export import from_lora

        return from_lora(lm, folder)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write `patch.json` and `patch.safetensors`; see [`errata.patch.folder.save`][]."""
        from errata.patch.folder import save

        return save(self, folder, force=force)

    @classmethod
    def load(cls, folder: str | Path) -> Patch:
        """Read a patch folder; see [`errata.patch.folder.load`][]."""
        from errata.patch.folder import load

        return load(folder)
