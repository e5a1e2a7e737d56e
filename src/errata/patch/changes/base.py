"""What every kind of change is: a value that knows where it acts and how it is put to work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from errata.data._records import describe
from errata.errors import ErrataError, PatchError, SpecError

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel

    from errata.model.lm import LM
    from errata.patch.parts import Parts

Factors = tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]
Merge = Callable[["LM", Sequence[Any]], Callable[["LM"], "PreTrainedModel"]]
"""Given a model and the changes it holds, returns what makes a model that has them built in."""

KEEP = "Keep the patch folder and apply it with errata."


def text_of(entry: Mapping[str, Any], field: str) -> str:
    """Return a field of a saved change that has to be a text.

    Raises:
        PatchError: If it is missing or something else.
    """
    value = entry.get(field)
    if not isinstance(value, str):
        raise PatchError(f"{field} is {describe(value)}; expected a text")
    return value


def object_of(entry: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return a field of a saved change that has to be an object.

    Raises:
        PatchError: If it is missing or something else.
    """
    value = entry.get(field)
    if not isinstance(value, dict):
        raise PatchError(f"{field} is {describe(value)}; expected an object")
    return value


def numbers_of(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor of a saved change that has to hold floating-point numbers.

    Raises:
        PatchError: If it is missing or holds something else.
    """
    if name not in tensors:
        raise PatchError(f"the tensor {name!r} is missing")
    if not tensors[name].is_floating_point():
        raise PatchError(f"the tensor {name!r} holds {tensors[name].dtype}")
    return tensors[name]


@contextmanager
def building(label: str) -> Iterator[None]:
    """Name the change whose configuration or tensors are not what its kind needs.

    Raises:
        PatchError: Says what is missing or wrong.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise PatchError(
            f"{label} cannot be built: {what}", "The patch is damaged; make it again."
        ) from error


@contextmanager
def fitting(label: str) -> Iterator[None]:
    """Name the change whose tensors do not fit what they meet in the model.

    What says that memory ran out goes through as it is.

    Raises:
        PatchError: Says what did not fit.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ErrataError) or "allocate memory" in str(error):
            raise
        told = str(error).partition("\n")[0]
        raise PatchError(
            f"{label} does not fit the model: {told}",
            "The patch is damaged, or for another model; make it again.",
        ) from error


class Change(ABC):
    """One change of a model; a patch is made of them.

    A kind of change is a frozen dataclass (with `eq=False, repr=False`: tensors have no truth value
    to compare by, so two changes are equal if they are the same object) that inherits from this
    class or from a kind below it, says its `kind` and is registered with `@change_kind`. What
    stands here suits a change of hidden states; a kind overrides what it does otherwise.

    Attributes:
        kind: Its word in `patch.json`.
        path: Dotted path of the module or parameter it changes; empty: the whole model.
    """

    kind: ClassVar[str]
    path: str

    def __repr__(self) -> str:
        """One line, never a tensor."""
        shapes = ", ".join(
            f"{name} {'×'.join(map(str, tensor.shape))}" for name, tensor in self.tensors().items()
        )
        return f"<{type(self).__name__}: {self.label.removeprefix('the ')}; {shapes}>"

    # ------------------------------------------------------------------ on disk

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file: `kind`, and what `from_entry` reads."""

    @classmethod
    @abstractmethod
    def from_entry(cls, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the change that `describe` and `tensors` were saved of.

        Both come from a file: read them with `text_of`, `object_of` and `numbers_of`, which refuse
        what is missing or of another type.
        """

    # ------------------------------------------------------------------ what it is

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"the change of {self.path}"

    @property
    def parameter(self) -> str | None:
        """Name of the parameter that it adds `difference` to; None: it changes no weight."""
        return None

    @property
    def factors(self) -> Factors | None:
        """`B` and `A` if it is `W += B A` on the projection at `path`."""
        return None

    @property
    def tokens(self) -> int:
        """How many tokens it puts in front of every input."""
        return 0

    @property
    def answers(self) -> bool:
        """Whether it answers in place of the model, whose hidden states stay."""
        return False

    @property
    def reads_input(self) -> bool:
        """Whether it acts in front of its module, on what that is given."""
        return False

    # ------------------------------------------------------------------ whose it is

    @property
    def held(self) -> tuple[str, ...]:
        """Key of each edit whose part it can give up (`errata.patch.removal.edit_key`), in order.

        Empty: what it does cannot be told apart by edits.
        """
        return ()

    def without(self, numbers: Collection[int]) -> Change | None:
        """Return the change that it would be without some of the edits of `held`, by position.

        None: there would be none.

        Raises:
            PatchError: If it cannot be told apart by edits.
        """
        raise PatchError(f"{self.label} cannot be told apart by edits")

    # ------------------------------------------------------------------ at a model

    @abstractmethod
    def check(self, lm: LM) -> None:
        """Refuse a model that it does not fit.

        Raises:
            PatchError: Says which module or parameter is missing or has another shape.
        """

    @abstractmethod
    def install(self, parts: Parts, group: int) -> None:
        """Add what it consists of to the parts of a group (`errata.patch.parts`)."""

    def moves_input(self, lm: LM, layer: int, paths: Collection[str]) -> bool:
        """Whether it may reach the input of modules of a block; false only where it cannot.

        Args:
            lm: The model.
            layer: The block.
            paths: Modules that read the same input: one, or the first matrices of an FFN.
        """
        if self.answers:
            return False
        path = self.path if self.parameter != self.path else self.path.rpartition(".")[0]
        try:
            block = lm.spec.layer_of(path)
        except SpecError:
            return not path or path not in (lm.spec.final_norm, lm.spec.head)
        if block != layer:
            return block < layer
        if path in paths:
            return self.reads_input
        return path != lm.site(layer).path  # the last of its block

    # ------------------------------------------------------------------ changes of weights

    def difference(self, lm: LM) -> Tensor:
        """Return what is added to `parameter`: in its stored shape, float32 at least.

        Raises:
            PatchError: If it changes no weight.
        """
        raise PatchError(f"{self.label} has no difference of weights")

    def in_float64(self) -> Self:
        """Return the same in float64, so that many can be added up."""
        return self

    def scaled(self, factor: float) -> Change:
        """Return the change `factor` times as strong.

        Raises:
            PatchError: If it has no strength.
        """
        raise PatchError(f"{self.label} cannot be scaled: it has no strength")

    # ------------------------------------------------------------------ leaving errata

    def projection(self, lm: LM) -> str:
        """Return the path of the projection whose weight it changes, for an export as LoRA.

        Raises:
            PatchError: If it changes something else.
        """
        merged = "" if self.merge() is None else "Export with --to merged. "
        raise PatchError(f"LoRA cannot carry {self.label}: it is no weight", merged + KEEP)

    def merge(self) -> Merge | None:
        """Return how it becomes part of a checkpoint, if it is no change of weights and can be.

        Changes that return the same function are merged by it together. Changes of weights need
        none: their differences are added.
        """
        return None
