"""GRACE: a codebook behind one layer that answers near its keys and else defers to the layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.editors.base import Cost, Editor, EditorConfig, Layer, resolve_layer, under
from errata.editors.grace.codebook import KIND, Asks, Codebook, Replacement
from errata.editors.grace.deferral import released_at, replaced_at
from errata.editors.grace.training import Asked, Work
from errata.errors import ConfigError, EditError, PatchError
from errata.locate.sinks import warn_of_sinks
from errata.model.lm import LM
from errata.model.spec import Site
from errata.model.tokens import Row, bucket, patched
from errata.patch import Module, Patch
from errata.store.digest import seed_of

DEPTH = 0.64
"""Where `auto` puts the codebook: 18 of 28 blocks, as published for Qwen2.5-7B."""


class GraceConfig(EditorConfig):
    """Settings of GRACE."""

    layer: Layer = Field(
        default="auto",
        description="Block of the codebook; auto: as published for this model, else at 0.64 of the "
        "depth",
    )
    site: Literal["auto", "ffn_in", "ffn_out"] = Field(
        default="auto",
        description="Layer in the block: first or second matrix of the FFN; auto: as published for "
        "this model, else ffn_out",
    )
    radius: float = Field(default=1.0, gt=0, description="Radius of a new key (published: eps)")
    replacement: Replacement = Field(
        default="replace_last",
        description="replace_last: the output of the token whose key decides; replace_prompt: of "
        "all tokens before it",
    )
    start: Literal["warm", "cold"] = Field(
        default="cold",
        description="Where a value starts: cold: uniform in [0, 1); warm: the layer's own output",
    )
    lr: float = Field(default=1.0, gt=0, description="Learning rate of Adam")
    steps: int = Field(default=100, ge=1, description="Updates of a value")
    stop_loss: float = Field(
        default=0.0, ge=0, description="No more updates when the loss is below this; 0: never"
    )
    seed: int = Field(default=0, description="Seed of cold values")
    conflicts: Literal["refuse", "replace"] = Field(
        default="refuse",
        description="Edits of one group with the same key and different targets: refuse them, or "
        "let the later one win, as it does over earlier edits",
    )
    memory_gb: float = Field(
        default=4.0, gt=0, description="Largest codebook; an edit that needs more is refused"
    )
    compat: bool = Field(
        default=False,
        description="The released rule: only a prompt's last token asks, in training and in use; "
        "labels are compared by the means of their token ids, in another order than the keys'; "
        "conflicts may widen balls",
    )

    @property
    def asks(self) -> Asks:
        """Whose inputs are compared with keys."""
        return "prompt" if self.compat else "tokens"


def _settings(layer: int, site: str = "ffn_out", steps: int = 100) -> dict[str, object]:
    return {"layer": layer, "site": site, "steps": steps}


class Grace(Editor):
    """A codebook behind one layer: values near their keys, elsewhere the layer itself."""

    name = "grace"
    title = "GRACE"
    paper = (
        "Hartvigsen et al., Aging with GRACE: Lifelong Model Editing with Discrete Key-Value "
        "Adaptors, 2023, arXiv:2211.11031"
    )
    needs = ()
    weights = False
    batch = "memory"
    sequence = "grows"
    exports = ()
    Config = GraceConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt2-xl": _settings(35, "ffn_in", 200),
        "gpt-j-6b": _settings(25, steps=200),
        "llama-3-8b": _settings(27),
        "qwen2.5-7b": _settings(18, steps=50),
        # UniEdit's baseline, the one in IBKE's table
        "uniedit-gpt2-xl": _settings(35, "ffn_in"),
        "uniedit-gpt-j-6b": _settings(25),
        "uniedit-llama-3-8b": _settings(27),
    }
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # found on validation facts of the world, single edits and 100 in sequence; see docs
        "pocket": {
            "layer": 4,
            "radius": 4.5,
            "start": "warm",
            "lr": 0.3,
            "stop_loss": 0.02,
        },
    }
    config: GraceConfig

    def edited_layers(self, lm: LM) -> tuple[int]:
        """Return the block of the codebook."""
        return (self._place(lm)[0],)

    def _place(self, lm: LM) -> tuple[int, Site]:
        """Return the block and the layer of the codebook.

        Raises:
            ConfigError: If the FFN has a gate and its first matrix is asked for: there are two.
        """
        rule = min(lm.n_layers - 1, round(DEPTH * lm.n_layers))
        layer = resolve_layer(lm, self.config.layer, self._automatic(lm, "layer", rule))
        site = self.config.site
        if site == "auto":
            site = str(self.known_settings(lm).get("site", "ffn_out"))
        if site == "ffn_out":
            return layer, lm.site(layer)
        inner = lm.spec.ffn_in[layer]
        if len(inner) != 1:
            raise ConfigError(
                f"the FFN of block {layer} of {lm.name} has {len(inner)} first matrices",
                "Take the second one: --set site=ffn_out",
            )
        return layer, inner[0]

    def check_together(self, group: Sequence[Edit]) -> None:
        """Refuse different answers to one prompt; as released, they widen a ball."""
        if not self.config.compat:
            super().check_together(group)

    # ------------------------------------------------------------------ editing

    def cost(self, lm: LM) -> Cost:
        """A pass forward and one back in every step."""
        return Cost(passes=2.0 * self.config.steps)

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Train the values of new entries, one edit of each group after the other."""
        layer, site = self._place(lm)
        books = [self._earlier(lm, patch, layer, site) for patch in before]
        bare = [patch.split(KIND, Module)[0] for patch in before]
        own: list[set[int]] = [set() for _ in groups]  # keys that this group's edits use
        # the edits of a group follow one another; across groups, all of one position go together
        for position in range(max(map(len, groups))):
            members = [g for g, group in enumerate(groups) if len(group) > position]
            for numbers, patches in under(lm, [bare[g] for g in members]):
                here = [members[i] for i in numbers]
                edits = [groups[g][position] for g in here]
                rows = patched([lm.row_of(edit) for edit in edits], patches)
                warn_of_sinks(lm, rows, [row.prompt_length - 1 for row in rows], layer)
                for index in bucket(rows, lm.max_tokens):
                    self._write(
                        Work(lm, layer, site), [rows[i] for i in index], [edits[i] for i in index],
                        [here[i] for i in index], books, own,
                    )  # fmt: skip
        change, asks = self.config.replacement, self.config.asks
        return [
            self.make_patch(lm, [book.module(site.path, change, asks)], group, **book.state())
            for book, group in zip(books, groups, strict=True)
        ]

    def _write(
        self,
        work: Work,
        rows: Sequence[Row],
        edits: Sequence[Edit],
        members: Sequence[int],
        books: list[Codebook],
        own: list[set[int]],
    ) -> None:
        """Write one edit of each of some groups into the group's codebook."""
        asked = work.read(rows)
        for one, edit, g in zip(asked, edits, members, strict=True):
            book, key = self._admit(books[g], one, edit, own[g])
            own[g].add(key)
            at = self._replaced(book, one)
            if not bool((at == key).any()):
                raise EditError(
                    f"nothing stands before the token of {edit.prompt!r} that decides, or an "
                    "earlier one decides: replace_prompt cannot answer it",
                    "Edit with --set replacement=replace_last.", edits=[edit],
                )  # fmt: skip
            one.at, one.key, one.start = at, key, book.values[key]
            books[g] = book
        settings = self.config
        trained = work.train(
            asked, [books[g] for g in members],
            lr=settings.lr, steps=settings.steps, stop_loss=settings.stop_loss,
        )  # fmt: skip
        for one, g, value in zip(asked, members, trained, strict=True):
            books[g] = books[g].with_value(one.key, value)

    def _replaced(self, book: Codebook, one: Asked) -> Int[Tensor, " T"]:
        """Return for every token of a row the key that answers for it in use, -1: none."""
        chosen = book.chosen(one.given)[None]
        if self.config.asks == "tokens":
            return replaced_at(chosen, self.config.replacement)[0]
        last = torch.tensor([one.row.prompt_length - 1], device=chosen.device)
        return released_at(chosen, last, self.config.replacement)[0]

    def _admit(self, book: Codebook, one: Asked, edit: Edit, own: set[int]) -> tuple[Codebook, int]:
        """Find or make the key of an edit.

        Raises:
            EditError: If it collides with another edit of its group, or memory is short.
        """
        settings, prompt = self.config, one.row.prompt_length
        start = one.output if settings.start == "warm" else self._drawn(edit, one.output)
        label, query = one.row.labels, one.given[prompt - 1]
        new, key, collides = book.admitted(
            query, start, label, prompt, settings.radius, compat=settings.compat
        )
        if collides and key in own and settings.conflicts == "refuse":
            raise EditError(
                f"{edit.prompt!r} has the key of an earlier edit of its group, but another target "
                f"({edit.target!r}): no border fits between them",
                "Leave one of them out, or: --set conflicts=replace", edits=[edit],
            )  # fmt: skip
        if collides:  # the same question again: the later answer holds, as far as the earlier did
            new = book.relabelled(key, label, prompt).with_value(key, start)
        limit = settings.memory_gb * 1e9
        if len(new) > len(book) and new.nbytes > limit:
            raise EditError(
                f"the codebook would hold {len(new)} keys, {new.nbytes / 1e9:.3g} GB; the limit is "
                f"{settings.memory_gb:g} GB",
                f"Example: --set memory_gb={2 * new.nbytes / 1e9:.2g}", edits=[edit],
            )  # fmt: skip
        return new, key

    def _drawn(self, edit: Edit, like: Float[Tensor, " d_out"]) -> Float[Tensor, " d_out"]:
        """Draw a cold value, which depends on the edit and the seed alone."""
        text = f"{self.config.seed}\0{edit.prompt}\0{edit.target}"
        drawn = torch.rand(like.shape, generator=torch.Generator().manual_seed(seed_of(text)))
        return drawn.to(like)

    # ------------------------------------------------------------------ earlier patches

    def _earlier(self, lm: LM, patch: Patch, layer: int, site: Site) -> Codebook:
        """Return the codebook of an earlier patch; an empty one if it has none.

        Raises:
            PatchError: If it cannot be extended: another version, layer or replacement, several
                codebooks, or keys of a model that has changed below them since.
        """
        dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
        own = patch.split(KIND, Module)[1]
        if not own:
            return Codebook.empty(site.d_in, site.d_out, dtype, lm.device)
        module = own[0]
        if len(own) > 1:
            raise PatchError(
                f"the earlier patch holds {len(own)} codebooks of GRACE",
                "Edit after one patch (--after) instead of adding two.",
            )
        book = Codebook.restored(module, patch.state).to(lm.device, dtype)
        if module.path != site.path or book.keys.shape[1] != site.d_in:
            raise PatchError(
                f"the earlier patch has its codebook at {module.path}, not at {site.path}",
                "Edit with the layer and site that its patch.json names.",
            )
        if module.config.get("asks", "tokens") != self.config.asks:
            raise PatchError(
                f"the earlier patch was made {'without' if self.config.compat else 'with'} "
                "GRACE's released rule (compat)",
                f"Edit with --set compat={str(not self.config.compat).lower()}.",
            )
        if module.config.get("replacement") != self.config.replacement:
            raise PatchError(
                f"the earlier patch was made with {module.config.get('replacement')}, not with "
                f"{self.config.replacement}",
                f"Edit with --set replacement={module.config.get('replacement')}.",
            )
        place = next(i for i, change in enumerate(patch.changes) if change is module)
        for change in patch.changes[place + 1 :]:
            if change.moves_input(lm, layer, [site.path]):
                raise PatchError(
                    f"the earlier patch changed {change.path} after GRACE's keys were read above "
                    "it: they are keys of another model",
                    "Change what lies below first, then edit with GRACE.",
                )
        return book

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put the grown codebook in the place of the earlier one, behind all other changes."""
        return before.split(KIND, Module)[0] + added
