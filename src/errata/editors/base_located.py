"""What all locate-then-edit methods share: blocks, contexts and second moments of keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.data.corpus import load_corpus
from errata.editors.base import Conflicts, Cost, Editor, EditorConfig, Layer, resolve_layer
from errata.editors.recall import recall_layer, recall_rule
from errata.locate.contexts import (
    Contexts,
    ContextSettings,
    Mean,
    context_count,
    get_contexts,
)
from errata.locate.moment_files import Moment
from errata.locate.moments import MomentSettings, documents_of, get_moments
from errata.locate.own_text import OWN, is_own
from errata.locate.rows import Savings
from errata.locate.sinks import behind_sinks, find_sinks
from errata.locate.solve import Factor
from errata.locate.spectrum import get_factor
from errata.locate.values import ValueSettings
from errata.model.lm import LM
from errata.model.passes import Place
from errata.patch import Change, Patch

Layers = Annotated[tuple[int, ...], Field(min_length=1)] | Literal["auto"]


class LocateConfig(EditorConfig, ValueSettings, ContextSettings, MomentSettings, Savings):
    """Settings of every locate-then-edit method."""


class OneLayerConfig(LocateConfig, Conflicts):
    """Settings of a method that edits one block."""

    layer: Layer = Field(
        default="auto",
        description="Block to edit; auto: as published for this model, else as traced, else by "
        "depth",
    )


@dataclass(frozen=True)
class LocateParts:
    """What is made once per model.

    Attributes:
        layers: Blocks to edit, ascending.
        contexts: Texts in front of the prompts.
        moments: Per block, the factor of its keys' second moment; None: `C = I`.
        text: What the moments were counted on; empty: nothing.
    """

    layers: tuple[int, ...]
    contexts: Contexts
    moments: Mapping[int, Factor | None]
    text: str = ""


class LocateEditor(Editor):
    """Writes keys and values found at the subject's last token into FFN output projections.

    Attributes:
        mean: How the keys of an edit are averaged over contexts.
    """

    needs = ("subject", "moments")
    weights = True
    mean: ClassVar[Mean] = "flat"
    config: LocateConfig

    @property
    def value_place(self) -> Place:
        """Where the value that an update aims at is found."""
        return "ffn"

    def aimed(
        self,
        lm: LM,
        edits: Sequence[Edit],
        layer: int,
        target: Float[Tensor, "n d"],
        place: Place,
        patches: Sequence[int],
    ) -> Float[Tensor, "n d"]:
        """Return what an update aims at; here, and for all but strategies: what was found.

        Args:
            lm: The model.
            edits: One per row.
            layer: Block at which the values were found.
            target: The values found.
            place: Where in the block.
            patches: For each row its patch in the active stack.
        """
        return target

    def finished(self, lm: LM, layer: int, change: Change, now: Patch) -> Change:
        """Return the change of one block; here, and for all but strategies: as it was solved.

        Args:
            lm: The model.
            layer: The block.
            change: What was solved.
            now: What its group has changed so far.
        """
        return change

    @abstractmethod
    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the blocks that are edited, ascending."""

    @property
    def edits_experts(self) -> bool:
        """Whether it edits single experts of a mixture."""
        return True

    def rule_of(self, lm: LM) -> str:
        """Say whether the blocks are traced or a rule of thumb."""
        return recall_rule(lm)

    def ridge_of(self, moment: Moment) -> float:
        """Return what is added to the diagonal of a second moment, relative to its mean."""
        return self.config.ridge

    @property
    def whitens(self) -> bool:
        """Whether the second moment of keys enters the update."""
        return True

    def made_of(self, lm: LM) -> dict[str, str]:
        """Return the blocks, which `auto` may take from a trace."""
        return {"layers": " ".join(map(str, self.edited_layers(lm)))}

    def cost(self, lm: LM) -> Cost:
        """Forward and back of every context and the essence prompt, in every step; moments."""
        texts = context_count(self.config) + 1
        layers = self.edited_layers(lm)
        matrices = len(layers) + 1 if self.whitens else 0  # of keys, in float64, and a factor
        held = 8.0 * matrices * lm.site(layers[0]).d_in ** 2
        return Cost(passes=2.0 * texts * self.config.steps, held=held)

    def ready(self, model: str) -> None:
        """Look for the texts that second moments are counted on, if they are named."""
        found = self.config.moments_text in ("auto", OWN)
        if self.whitens and self.config.moments_file is None and not found:
            load_corpus(model, self.config.moments_text, documents_of(self.config))

    def prepare(self, lm: LM) -> None:
        """Sample the contexts and count the second moments of the edited blocks' keys.

        In a mixture of experts that is done when it is known which experts are edited.
        """
        if lm.focus or not any(lm.spec.routed(layer) for layer in self.edited_layers(lm)):
            self.prepared(lm)

    def notes(self, lm: LM, edits: Sequence[Edit]) -> list[str]:
        """Say if moments stand on the model's own text; name edits behind a neutral text."""
        text = self.text_of(lm)
        told = [f"Second moments: {text}"] if is_own(text) else []
        contexts = self.prepared(lm).contexts
        if not contexts.neutral:
            return told
        return told + [
            f"{edit.subject!r} begins the text, where this model hardly tells tokens apart: "
            f"computed behind {contexts.neutral.strip()!r}; ask with words in front, too"
            for edit in edits
            if self._at_sink(lm, edit)
        ]

    def _at_sink(self, lm: LM, edit: Edit) -> bool:
        """Whether the subject's last token stands where keys say nothing of it."""
        sinks = find_sinks(lm, max(self.edited_layers(lm)))
        return lm.prompt_of(edit, subject=True).subject_last in sinks.positions

    def out_of_reach(self, lm: LM, edit: Edit) -> str:
        """Say that the subject stands at an attention sink: what is written is not read there."""
        if not self._at_sink(lm, edit):
            return ""
        return (
            f"no setting: {edit.subject!r} begins the text, where {lm.name} hardly tells tokens "
            f"apart; ask with words in front of it"
        )

    def text_of(self, lm: LM) -> str:
        """Return what second moments were counted on, once that was done; empty: none are used."""
        return self.prepared(lm).text

    def sources(self, lm: LM) -> dict[str, str]:
        """Return where blocks, settings and second moments come from."""
        text = self.text_of(lm)
        return super().sources(lm) | ({"moments_from": text} if text else {})

    def prepared(self, lm: LM) -> LocateParts:
        """Return what was made for this model, making it the first time.

        Raises:
            ConfigError: If the model has no such block.
            DataError: If the texts for the second moments cannot be read.
        """
        key = ("prepared", *sorted(lm.focus.items()))
        return lm.once(key, lambda: self._made_ready(lm), owner=self)

    def _made_ready(self, lm: LM) -> LocateParts:
        layers = self.edited_layers(lm)
        moments: dict[int, Factor | None] = dict.fromkeys(layers)
        text = ""
        if self.whitens:
            for layer, moment in get_moments(lm, layers, self.config).items():
                moments[layer] = get_factor(lm, layer, moment, self.ridge_of(moment))
                text = counted_on(moment)
        contexts = behind_sinks(lm, get_contexts(lm, self.config), layers, self.config)
        return LocateParts(layers, contexts, moments, text)


def counted_on(moment: Moment) -> str:
    """Say what a moment was counted on."""
    tokens = f"{moment.tokens:,} tokens of " if moment.tokens else ""
    return f"{tokens}{moment.source}" if moment.source else ""


def one_layer(editor: Editor, lm: LM, layer: Layer) -> tuple[int]:
    """Return the block of a method that edits one."""
    return (resolve_layer(lm, layer, editor._automatic(lm, "layer", recall_layer(lm))),)
