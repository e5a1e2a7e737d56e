"""Updates that are kept apart, of which a row gets those of the nearest request, or none.

```
 prompt of a row ──▶ unedited model ──▶ state of one block: at the prompt's last token, or the mean
                                              │   over its tokens, centred and whitened (KeySpace)
                                              │ cosine with the key of every stored request
                                              ▼
                             nearest and near enough: y += x Aᵀ Bᵀ at every matrix of that request
                             else: nothing, the row keeps the bits of the model
```

The state is read off a pass of its own, in which no patch is at work, in hooks or in weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from errata.errors import PatchError
from errata.model.hooks import bare
from errata.model.passes import capture, module_at, wide
from errata.model.tokens import Row
from errata.patch.changes.base import Change, building, numbers_of
from errata.patch.changes.kinds import change_kind
from errata.patch.changes.module import Module
from errata.patch.changes.weights import LowRank

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.passes import Pass
    from errata.patch.parts import Parts

VERSION = 1
SAME = 1 - 1e-5
"""Cosine from which two keys are of one prompt: the later request takes the earlier one's place."""

PAIRS = 2**24
"""Products of states with keys that are held at once (64 MB in float32); more go in parts."""

REMEMBERED = 2**16
"""Prompts whose state is kept with a model: it is the same under all patches."""

Text = tuple[int, ...]
Pool = Literal["last", "mean"]


@dataclass(frozen=True, eq=False)
class KeySpace:
    """How the prompts of questions and of requests are compared.

    Attributes:
        block: Whose output is the state.
        pool: `last`: at the prompt's last token; `mean`: over its tokens, but for the first, on
            which models leave what is no word's own.
        centre: `[d]`, subtracted; None: nothing is.
        white: `[d, d]`, multiplied by behind that; None: nothing is.
    """

    block: int
    pool: Pool = "last"
    centre: Float[Tensor, " d"] | None = None
    white: Float[Tensor, "d d"] | None = None

    def keys(self, states: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the direction by which states are compared."""
        if self.centre is not None:
            states = states - self.centre.to(states)
        if self.white is not None:
            states = states @ self.white.to(states)
        return nn.functional.normalize(states, dim=-1)

    def of(self, lm: LM, texts: Sequence[Text]) -> Float[Tensor, "n d"]:
        """Return the key of each text, read off the unedited model."""
        return self.keys(states_of(lm, self.block, texts, self.pool))

    def on(self, device: torch.device) -> KeySpace:
        """Return the same with its tensors on a device."""
        return replace(self, **{name: own.to(device) for name, own in self.tensors().items()})

    def same(self, other: KeySpace) -> bool:
        """Whether two compare alike."""

        def equal(a: Tensor | None, b: Tensor | None) -> bool:
            if a is b or a is None or b is None:
                return a is b
            return a.shape == b.shape and torch.equal(a, b.to(a))

        return (
            (self.block, self.pool) == (other.block, other.pool)
            and equal(self.centre, other.centre)
            and equal(self.white, other.white)
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        named = {"centre": self.centre, "white": self.white}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def read(cls, entry: Mapping[str, Any], tensors: Mapping[str, Tensor], width: int) -> KeySpace:
        """Return what was saved.

        Raises:
            ValueError: If something does not fit.
        """
        pool = entry.get("pool", "last")  # before there was another
        if pool not in get_args(Pool):
            raise ValueError(f"{pool!r} is no way to read a prompt")
        shapes = {"centre": (width,), "white": (width, width)}
        for name, shape in shapes.items():
            if name in tensors and tuple(numbers_of(tensors, name).shape) != shape:
                raise ValueError(f"{name!r} is not of {width} numbers")
        return cls(int(entry["block"]), pool, tensors.get("centre"), tensors.get("white"))


@dataclass(frozen=True)
class Store:
    """The updates of N requests at one matrix, one behind the other.

    Attributes:
        B: `[d_out, R]`.
        A: `[R, d_in]`.
        ends: `[N]`, where the factors of each request end.
    """

    B: Float[Tensor, "d_out R"]
    A: Float[Tensor, "R d_in"]
    ends: Int[Tensor, " N"]

    def of(self, number: int) -> tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]:
        """Return the factors of one request."""
        start = int(self.ends[number - 1]) if number else 0
        part = slice(start, int(self.ends[number]))
        return self.B[:, part], self.A[part]

    def kept(self, numbers: Sequence[int]) -> Store:
        """Return those of some requests, in that order."""
        pairs = [self.of(number) for number in numbers]
        return Store.joined([LowRank("", B, A) for B, A in pairs], self)

    @classmethod
    def joined(cls, changes: Sequence[LowRank], like: Store | None = None) -> Store:
        """Return the store of one low-rank change per request."""
        if not changes and like is not None:
            return cls(like.B[:, :0], like.A[:0], like.ends[:0])
        sizes = torch.tensor([change.rank for change in changes])
        return cls(
            torch.cat([change.B for change in changes], 1),
            torch.cat([change.A for change in changes], 0),
            sizes.cumsum(0),
        )

    def behind(self, other: Store) -> Store:
        """Return `other`'s requests and then these."""
        first = int(other.ends[-1]) if len(other.ends) else 0
        return Store(
            torch.cat([other.B, self.B.to(other.B)], 1),
            torch.cat([other.A, self.A.to(other.A)]),
            torch.cat([other.ends, self.ends + first]),
        )


@change_kind("retrieved")
@dataclass(frozen=True, eq=False, repr=False)
class Retrieved(Change):
    """Low-rank updates of several requests; a row runs under those of the request it is about.

    Attributes:
        keys: `[N, d]` of length one, float32 at least: the state of each request's prompt.
        stores: By matrix.
        threshold: Cosine from which a request is near enough.
        space: What is compared.
        path: Empty: it acts on several modules.
    """

    kind: ClassVar[str] = "retrieved"
    keys: Float[Tensor, "N d"]
    stores: Mapping[str, Store]
    threshold: float
    space: KeySpace
    path: ClassVar[str] = ""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"the memory of {len(self):,} updates"

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        named = {"keys": self.keys, **self.space.tensors()}
        for number, store in enumerate(self.stores.values()):
            named |= {f"{name}.{number}": getattr(store, name) for name in ("A", "B", "ends")}
        return named

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {
            "kind": self.kind, "version": VERSION, "paths": list(self.stores),
            "threshold": self.threshold, "block": self.space.block, "pool": self.space.pool,
        }  # fmt: skip

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Retrieved:
        """Return the change that was saved.

        Raises:
            PatchError: If another version of errata wrote it, or something does not fit.
        """
        if entry.get("version") != VERSION:
            raise PatchError(
                f"a memory of updates of version {entry.get('version')}; this errata reads "
                f"version {VERSION}",
                "Make the patch again from its edits, or install the errata that made it.",
            )
        with building("the memory of updates"):
            keys = tensors["keys"]
            stores = {
                str(path): Store(*(tensors[f"{name}.{number}"] for name in ("B", "A", "ends")))
                for number, path in enumerate(entry["paths"])
            }
            space = KeySpace.read(entry, tensors, keys.shape[1])
            change = cls(keys, stores, float(entry["threshold"]), space)
            for store in stores.values():
                whole = int(store.ends[-1]) if len(store.ends) else 0
                if len(store.ends) != len(keys) or not whole == len(store.A) == store.B.shape[1]:
                    raise ValueError("its tensors are of different requests")
        return change

    def check(self, lm: LM) -> None:
        """Refuse a model without these matrices, or of another width.

        Raises:
            PatchError: Says what does not fit.
        """
        for path, store in self.stores.items():
            LowRank(path, store.B, store.A).check(lm)
        block = self.space.block
        if not 0 <= block < lm.n_layers or self.keys.shape[1] != lm.embedding.shape[1]:
            raise PatchError(
                f"{self.label} compares {self.keys.shape[1]} numbers of block {block}; "
                f"{lm.name} has {lm.n_layers} blocks of width {lm.embedding.shape[1]}",
                "The patch is for another model.",
            )

    def install(self, parts: Parts, group: int) -> None:
        """Add one network per matrix; they share what they look up."""
        lookup = Lookup(parts.lm, self)
        for path, store in self.stores.items():
            place = Module(path, self.kind, {}, {}, "both")
            parts.add_network(group, place, Chosen(lookup, store))

    # ------------------------------------------------------------------ growing

    def grown(self, more: Retrieved) -> Retrieved:
        """Return both memories as one; a later request of a prompt takes the earlier one's place.

        Raises:
            PatchError: If they compare other states or change other matrices.
        """
        if not self.space.same(more.space) or list(self.stores) != list(more.stores):
            raise PatchError(
                f"{self.label} is about other matrices, or compares prompts otherwise, than the "
                "new updates",
                "Edit with the settings and networks that its patch.json names.",
            )
        near = self.keys.to(more.keys) @ more.keys.T
        stays = (near < SAME).all(1).nonzero()[:, 0].tolist()
        keys, stores = self.keys, dict(self.stores)
        if len(stays) < len(self):
            keys = keys[stays]
            stores = {path: store.kept(stays) for path, store in stores.items()}
        return Retrieved(
            torch.cat([keys.to(more.keys), more.keys]),
            {path: more.stores[path].behind(store) for path, store in stores.items()},
            more.threshold,
            self.space,
        )


# ---------------------------------------------------------------------- at work


@torch.no_grad()
def states_of(
    lm: LM, block: int, texts: Sequence[Text], pool: Pool = "last"
) -> Float[Tensor, "n d"]:
    """Return the unedited model's state of each text; see `KeySpace`."""
    last = [len(text) - 1 for text in texts]
    rows = [Row(text, (at,), (), len(text)) for text, at in zip(texts, last, strict=True)]
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    with lm.installed.unwritten(), bare(lm.model):
        module = module_at(lm, block, "block")
        for batch in lm.batches(rows):
            _, (hidden,) = capture(lm, batch, outputs=[module])
            for line, i in enumerate(batch.index):
                if pool == "last":
                    found[i] = wide(hidden[line, last[i]]).clone()
                else:
                    found[i] = wide(hidden[line, min(1, last[i]) : last[i] + 1]).mean(0)
    return torch.stack(found)


class Lookup:
    """Which request each row is about.

    Args:
        lm: The model.
        change: The requests' keys, and how they are compared.
    """

    def __init__(self, lm: LM, change: Retrieved) -> None:
        self.lm, self.threshold = lm, change.threshold
        self.space = change.space.on(lm.device)
        self.keys = change.keys.to(lm.device)
        self.found: dict[Text, int] = {}

    def of(self, seen: Pass) -> list[int]:
        """Return the number of each row's request, -1 where none is near enough."""
        texts = seen.tokens(prompt_only=True)
        if len(self.found) > REMEMBERED:
            self.found = {}
        fresh = sorted({text for text in texts if text not in self.found}, key=len)
        if fresh:
            keys = self.space.keys(self._states(fresh))
            self.found.update(zip(fresh, self.nearest(keys), strict=True))
        return [self.found[text] for text in texts]

    def nearest(self, states: Float[Tensor, "n d"]) -> list[int]:
        """Return the number of the nearest key of each state, -1 where none is near enough."""
        if not len(self.keys):
            return [-1] * len(states)
        parts = states.to(self.keys).split(max(1, PAIRS // len(self.keys)))
        best, number = map(torch.cat, zip(*((p @ self.keys.T).max(1) for p in parts), strict=True))
        return torch.where(best >= self.threshold, number, -1).tolist()

    def _states(self, texts: Sequence[Text]) -> Float[Tensor, "n d"]:
        """Return states; they are kept with the model, whose own they are under any patch."""
        lm = self.lm
        if any(not text for text in texts):
            raise PatchError(
                "a row without any token of a prompt cannot be compared with edits",
                "Give the prompt, at least one token.",
            )
        kept: dict[tuple[int, Pool, Text], Tensor] = lm.once("states of prompts", dict)
        block, pool = self.space.block, self.space.pool
        missing = [text for text in texts if (block, pool, text) not in kept]
        if len(kept) + len(missing) > REMEMBERED:
            kept.clear()
            missing = list(texts)
        if missing:
            made = states_of(lm, block, missing, pool)
            kept.update(((block, pool, text), s) for text, s in zip(missing, made, strict=True))
        return torch.stack([kept[block, pool, text] for text in texts])


class Chosen(nn.Module):
    """Adds to a matrix' output what the request of each row wants.

    Args:
        lookup: Says which request that is.
        store: The updates at this matrix.
    """

    sees_pass = True

    def __init__(self, lookup: Lookup, store: Store) -> None:
        super().__init__()
        self.lookup, self.store = lookup, store

    def forward(
        self, x: Float[Tensor, "B T d_in"], y: Float[Tensor, "B T d_out"], seen: Pass
    ) -> Float[Tensor, "B T d_out"]:
        """Return the output; rows about no request keep their bits."""
        numbers = self.lookup.of(seen)
        for number in sorted(set(numbers) - {-1}):
            rows = torch.tensor([i for i, n in enumerate(numbers) if n == number], device=x.device)
            B, A = (factor.to(x.device) for factor in self.store.of(number))
            kind = torch.promote_types(wide(x).dtype, A.dtype)
            extra = x[rows].to(kind) @ A.to(kind).T @ B.to(kind).T
            y = y.index_copy(0, rows, (y[rows].to(kind) + extra).to(y.dtype))
        return y
