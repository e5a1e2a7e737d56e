"""T-Patcher: a unit of its own for every edit, added to the last block's FFN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.editors.base import (
    Cost,
    Editor,
    EditorConfig,
    Layer,
    resolve_layer,
    under,
)
from errata.editors.contradictions import refuse_conflicts
from errata.editors.t_patcher.held import Held, Place, earlier
from errata.editors.t_patcher.losses import Penalty, StatesPenalty, TextPenalty
from errata.editors.t_patcher.memory import base_memory, memories
from errata.editors.t_patcher.training import Schedule, Start, Work
from errata.editors.t_patcher.units import KIND
from errata.errors import EditError
from errata.locate.paragraphs import Paragraphs
from errata.locate.sinks import warn_of_sinks
from errata.model.lm import LM
from errata.model.tokens import Row, patched
from errata.nets.ffn import ffn_form
from errata.patch import Module, Patch
from errata.store.digest import seed_of

STATE_COPIES = 7
"""Copies of the units one group needs: values, gradients, two moments and temporaries."""

TOKENS_PER_PARAGRAPH = 8
"""Least tokens counted on per paragraph, when paragraphs are drawn for a number of states."""

Form = Literal["unit_per_edit", "unit_per_token"]
FORMS: dict[str, dict[str, float]] = {
    "unit_per_edit": {"steps": 75, "activation_weight": 0.1, "memory_weight": 0.1},
    "unit_per_token": {"steps": 2000, "activation_weight": 1.0, "memory_weight": 10.0},
}
"""What `auto` means: as released by the authors of UniEdit and of T-Patcher."""


class TPatcherConfig(EditorConfig):
    """Settings of T-Patcher; the defaults are those of UniEdit's release."""

    form: Form = Field(
        default="unit_per_edit",
        description="unit_per_edit: one unit, all zero at first, as in UniEdit's comparison; "
        "unit_per_token: one for each wrong token, as first published",
    )
    layer: Layer = Field(
        default="auto", description="Block of the units; auto: as published, else the last"
    )
    steps: int | Literal["auto"] = Field(
        default="auto", description="Updates; auto: 75, and 2000 for unit_per_token"
    )
    lr: float = Field(default=1e-2, gt=0, description="Learning rate of Adam")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of Adam")
    activation_weight: float | Literal["auto"] = Field(
        default="auto",
        description="Weight of the loss that makes a unit fire at its edit; auto: 0.1, and 1 for "
        "unit_per_token",
    )
    memory_weight: float | Literal["auto"] = Field(
        default="auto",
        description="Weight of the loss that keeps it quiet elsewhere; auto: 0.1, and 10 for "
        "unit_per_token",
    )
    fires_at: Literal["all", "answer"] = Field(
        default="all",
        description="Where a unit per edit is made to fire: at all tokens of the edit, or at those "
        "that predict its target",
    )
    bias: bool | Literal["auto"] = Field(
        default="auto", description="Units have biases; auto: if the FFN's first matrices have them"
    )
    amplify: float = Field(
        default=10.0,
        gt=0,
        description="Factor of a random value at first, trained along (unit_per_token)",
    )
    max_wrong: int = Field(
        default=5, ge=1, description="Units of one edit at most (unit_per_token)"
    )
    memory_text: str = Field(
        default="auto",
        description="Text in which units keep quiet: auto (wikitext-103, or self where the Hub "
        "cannot be reached; for the pocket model its own world), self (what the model writes), a "
        "local .txt, .json or .jsonl file, or a data set of the Hub",
    )
    memory_words: int = Field(
        default=20, ge=0, description="A paragraph of it has more words than this"
    )
    memory_length: int = Field(default=256, ge=1, description="Tokens of a paragraph at most")
    memory_size: int = Field(
        default=40_000,
        ge=1,
        description="Remembered states of the text, and at most as many of edits (unit_per_token)",
    )
    stop_loss: float = Field(
        default=0.0, ge=0, description="No more updates when the loss is below this; 0: never"
    )
    stop_after: int = Field(default=0, ge=0, description="Updates before stop_loss is looked at")
    seed: int = Field(default=0, description="Seed of paragraphs and of random values")
    conflicts: Literal["refuse", "replace"] = Field(
        default="refuse",
        description="Edits of one group with the same prompt and different targets: refuse them, "
        "or let the later one be trained on top, as it is over earlier patches",
    )
    max_units: int = Field(
        default=10_000, ge=1, description="Most units of a patch; an edit beyond is refused"
    )
    memory_gb: float = Field(
        default=4.0, gt=0, description="Memory for groups trained at once; more run in turn"
    )

    def of_form(self, name: str) -> float:
        """Return a setting, `auto` resolved."""
        value = getattr(self, name)
        return FORMS[self.form][name] if value == "auto" else value


def _settings(layer: int) -> dict[str, object]:
    return {"layer": layer}


class TPatcher(Editor):
    """One more unit of the last block's FFN per edit, trained to fire there and nowhere else."""

    name = "t_patcher"
    title = "T-Patcher"
    paper = (
        "Huang et al., Transformer-Patcher: One Mistake Worth One Neuron, 2023, arXiv:2301.09785"
    )
    needs = ()
    weights = False
    batch = "in turn"
    sequence = "grows"
    exports = ("merged",)
    Config = TPatcherConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt2-xl": _settings(47),
        "gpt-j-6b": _settings(27),
        "llama-3-8b": _settings(31),
        "qwen3-1.7b": _settings(27),
        "qwen3-8b": _settings(35),
        # UniEdit's baseline, the one in IBKE's table: every unit has a bias
        "uniedit-gpt2-xl": {"layer": 47, "bias": True},
        "uniedit-gpt-j-6b": {"layer": 27, "bias": True},
        "uniedit-llama-3-8b": {"layer": 31, "bias": True},
    }
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # found on validation facts of the world, single edits and 60 in sequence; see docs
        "pocket": {"memory_words": 0, "memory_weight": 3.0, "fires_at": "answer"},
    }
    config: TPatcherConfig

    def edited_layers(self, lm: LM) -> tuple[int]:
        """Return the block of the units."""
        rule = self._automatic(lm, "layer", lm.n_layers - 1)
        return (resolve_layer(lm, self.config.layer, rule),)

    def _place(self, lm: LM) -> Place:
        (layer,) = self.edited_layers(lm)
        form = ffn_form(lm, layer)
        bias = form.bias if self.config.bias == "auto" else self.config.bias
        return Place(layer, lm.site(layer), form, bias, lm.spec.ffn_in[layer][0].d_in)

    def _text(self) -> Paragraphs:
        """Return which paragraphs are needed: one per step, or for a number of states."""
        settings = self.config
        count = int(settings.of_form("steps"))
        if settings.form == "unit_per_token":
            count = -(-settings.memory_size // max(settings.memory_words, TOKENS_PER_PARAGRAPH))
        return Paragraphs(
            settings.memory_text, count, settings.memory_words, settings.memory_length,
            settings.seed,
        )  # fmt: skip

    def prepare(self, lm: LM) -> None:
        """Read the text and keep its states with the model."""
        base_memory(lm, self._place(lm).layer, self._text())

    def check_together(self, group: Sequence[Edit]) -> None:
        """Refuse edits of one prompt with different targets: their units fire at the same tokens.

        Raises:
            EditError: Names all of them.
        """
        if self.config.conflicts == "refuse":
            refuse_conflicts(group, instead="replace")

    # ------------------------------------------------------------------ editing

    def cost(self, lm: LM) -> Cost:
        """Three passes in every step; states of the text where units keep quiet are kept."""
        return Cost(passes=3.0 * int(self.config.of_form("steps")))

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Train one unit per edit, one edit of each group after the other."""
        place = self._place(lm)
        state = [earlier(lm, patch, place) for patch in before]
        bare = [patch.split(KIND, Module)[0] for patch in before]
        # the edits of a group follow one another; across groups, all of one position go together
        for position in range(max(map(len, groups))):
            members = [g for g, group in enumerate(groups) if len(group) > position]
            for numbers, patches in under(lm, [bare[g] for g in members]):
                for chunk in self._chunks(place, [state[members[i]] for i in numbers]):
                    here = [members[numbers[i]] for i in chunk]
                    edits = [groups[g][position] for g in here]
                    added = self._units(
                        Work(lm, place.layer, place.form), place, edits,
                        [patches[i] for i in chunk],
                        [state[g] for g in here], [bare[g] for g in here],
                    )  # fmt: skip
                    for g, new in zip(here, added, strict=True):
                        state[g] = new
        return [
            self.make_patch(
                lm, [one.units.module(place.site.path, place.form)] if len(one.units) else [],
                group, **one.kept(),
            )
            for one, group in zip(state, groups, strict=True)
        ]  # fmt: skip

    def _chunks(self, place: Place, held: Sequence[Held]) -> Iterator[list[int]]:
        """Split groups so that what is trained at once fits into memory."""
        settings = self.config
        width = 8 if place.dtype_of(held) == torch.float64 else 4
        size = place.form.parts * place.width + place.site.d_out
        new = settings.max_wrong if settings.form == "unit_per_token" else 1
        states = settings.memory_size if settings.form == "unit_per_token" else 0
        budget = settings.memory_gb * 1e9 / width
        chunk: list[int] = []
        most = 0
        for number, one in enumerate(held):
            need = STATE_COPIES * new * (size + place.form.parts * states) + 2 * one.states.numel()
            most = max(most, len(one.units) * size + need)
            if chunk and most * (len(chunk) + 1) > budget:
                yield chunk
                chunk, most = [], len(one.units) * size + need
            chunk.append(number)
        yield chunk

    def _units(
        self,
        work: Work,
        place: Place,
        edits: Sequence[Edit],
        patches: Sequence[int],
        held: Sequence[Held],
        below: Sequence[Patch],
    ) -> list[Held]:
        """Add one edit to each of some groups, each under its patch in the active stack."""
        lm, settings = work.lm, self.config
        rows = patched([lm.row_of(edit) for edit in edits], patches)
        warn_of_sinks(lm, rows, [row.prompt_length - 1 for row in rows], work.layer)
        if settings.form == "unit_per_edit":
            places = [[row.prompt_length - 1] for row in rows]
        else:
            found = work.wrong(rows, [one.units for one in held])
            places = [positions[: settings.max_wrong] for positions in found]
        live = [i for i, positions in enumerate(places) if positions]
        result = list(held)
        if not live:
            return result
        for i in live:
            if len(held[i].units) + len(places[i]) > settings.max_units:
                raise EditError(
                    f"the patch would hold {len(held[i].units) + len(places[i])} units; the limit "
                    f"is {settings.max_units}",
                    f"Example: --set max_units={settings.max_units * 2}", edits=[edits[i]],
                )  # fmt: skip
        rows, mine = [rows[i] for i in live], [held[i] for i in live]
        own = [t.to(mine[0].units.values.dtype) for t in work.inputs(rows)]
        start = self._start(place, [edits[i] for i in live], own, [places[i] for i in live])
        penalty = self._penalty(
            work, rows, own, [places[i] for i in live], mine, [below[i] for i in live]
        )
        schedule = Schedule(
            int(settings.of_form("steps")), settings.lr, settings.weight_decay,
            settings.stop_loss, settings.stop_after,
        )  # fmt: skip
        new = work.train(rows, [one.units for one in mine], start, penalty, schedule)
        for i, one, row, states, units in zip(live, mine, rows, own, new, strict=True):
            kept = one.states
            if settings.form == "unit_per_token":
                answer = states[list(row.positions)]
                kept = torch.cat([kept, answer])[-settings.memory_size :]
            result[i] = Held(one.units.joined(units), kept)
        return result

    def _start(
        self,
        place: Place,
        edits: Sequence[Edit],
        own: Sequence[Float[Tensor, "T d"]],
        places: Sequence[Sequence[int]],
    ) -> Start:
        n = max(map(len, places))
        parts, d_out = place.form.parts, place.site.d_out
        keys = own[0].new_zeros(len(own), parts, n, own[0].shape[-1])
        values = own[0].new_zeros(len(own), n, d_out)
        real = torch.zeros(len(own), n, dtype=torch.bool, device=keys.device)
        for g, (states, positions) in enumerate(zip(own, places, strict=True)):
            real[g, : len(positions)] = True
            if self.config.form == "unit_per_token":  # an activation of 1, for gate and up
                states = states[list(positions)]
                keys[g, :, : len(positions)] = states / states.square().sum(-1, keepdim=True)
                values[g, : len(positions)] = self._drawn(edits[g], len(positions), values)
        biases = keys.new_zeros(keys.shape[:3]) if place.bias else None
        scale = None
        if self.config.form == "unit_per_token":
            scale = torch.full_like(values, self.config.amplify)
        return Start(keys, values, biases, scale, real)

    def _drawn(self, edit: Edit, count: int, like: Tensor) -> Float[Tensor, "count d_out"]:
        """Draw values, which depend on the edit and the seed alone."""
        text = f"{self.config.seed}\0{edit.prompt}\0{edit.target}"
        generator = torch.Generator().manual_seed(seed_of(text))
        return torch.randn(count, like.shape[-1], generator=generator).to(like)

    def _penalty(
        self,
        work: Work,
        rows: Sequence[Row],
        own: Sequence[Float[Tensor, "T d"]],
        places: Sequence[Sequence[int]],
        held: Sequence[Held],
        below: Sequence[Patch],
    ) -> Penalty:
        """Return the loss of activations, with the text's states under each group's patch."""
        settings = self.config
        weights = settings.of_form("activation_weight"), settings.of_form("memory_weight")
        memory, which = memories(
            work.lm, work.layer, self._text(), below, [row.patch for row in rows]
        )  # fmt: skip
        if settings.form == "unit_per_edit":
            everywhere = settings.fires_at == "all"
            counted = [range(len(row.ids)) if everywhere else row.positions for row in rows]
            return TextPenalty.of(own, counted, memory, which, weights)
        chosen = [states[list(positions)] for states, positions in zip(own, places, strict=True)]
        states = [torch.cat(texts)[: settings.memory_size] for texts in memory]
        return StatesPenalty.of(chosen, [one.states for one in held], states, which, weights)

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put all units, old and new, in the place of the old ones, behind all other changes."""
        return before.split(KIND, Module)[0] + added
