"""What WISE and MEMOIR share: one matrix late in the model, edits behind contexts, other texts.

```
 row per context   "{context} {prompt} {target}"      what is written
 one other text    an ordinary paragraph              what must stay
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from errata.case import Edit
from errata.editors.base import (
    Conflicts,
    Cost,
    Editor,
    EditorConfig,
    Layer,
    resolve_layer,
    under,
)
from errata.editors.wise.training import Asked, chunks
from errata.locate.contexts import ContextSettings, context_count, get_contexts
from errata.locate.paragraphs import Paragraphs
from errata.model.lm import LM
from errata.model.tokens import Row, patched
from errata.patch import Patch
from errata.store.digest import digest_of_all
from errata.tuning.ending import Stop, ending

DEPTH = 0.86
"""Where `auto` puts a memory: 27 of 32 blocks, as published for Llama-2 and Mistral."""


class BesideConfig(EditorConfig, Conflicts):
    """Settings of a memory beside one matrix."""

    layer: Layer = Field(
        default="auto",
        description="Block of the memory; auto: as published for this model, else at 0.86 of the "
        "depth",
    )
    contexts: str | tuple[str, ...] = Field(
        default="wise",
        description="Texts in front of an edit's prompt: a recipe (wise: 11, sampled from the "
        "unedited model) or a list of templates that end in {}",
    )
    memory_text: str = Field(
        default="auto",
        description="Other texts: auto (wikitext-103; for the pocket model its own world), world, "
        "a local .txt, .json or .jsonl file, or a data set of the Hub",
    )
    memory_words: int = Field(default=8, ge=0, description="A text has more words than this")
    memory_length: int = Field(default=24, ge=1, description="Tokens of a text at most")
    lr: float = Field(default=1.0, gt=0, description="Step of plain gradient descent")
    steps: int = Field(default=70, ge=1, description="Steps at most (published: n_iter)")
    stop: Stop = Field(
        default="none",
        description="What the model learns to say behind an answer: nothing more is asked for, or "
        "eos: the end of the text, turn: the end of its turn in the chat",
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of contexts, other texts, and masks or permutation"
    )
    memory_gb: float = Field(
        default=4.0,
        gt=0,
        description="Most that a patch's memory may take (more is refused), and memory for groups "
        "edited side by side",
    )


class BesideEditor(Editor):
    """An editor that writes to a memory beside one matrix.

    Attributes:
        paragraphs: How many other texts are read.
    """

    paragraphs: int
    config: BesideConfig

    def block(self, lm: LM) -> int:
        """Return the number of the block whose matrix has the memory."""
        rule = min(lm.n_layers - 1, round(DEPTH * lm.n_layers))
        return resolve_layer(lm, self.config.layer, self._automatic(lm, "layer", rule))

    def edited_layers(self, lm: LM) -> tuple[int]:
        """Return the block whose matrix has the memory."""
        return (self.block(lm),)

    @property
    def context_settings(self) -> ContextSettings:
        """How contexts are made."""
        return ContextSettings(contexts=self.config.contexts, seed=self.config.seed)

    def texts(self, lm: LM) -> list[Row]:
        """Return the other texts, tokenised."""
        config = self.config
        return Paragraphs(
            config.memory_text,
            self.paragraphs,
            config.memory_words,
            config.memory_length,
            config.seed,
        ).rows(lm)

    def prepare(self, lm: LM) -> None:
        """Sample the contexts and read the other texts."""
        get_contexts(lm, self.context_settings)
        self.texts(lm)

    def made_of(self, lm: LM) -> dict[str, str]:
        """Return digests of the contexts and of the other texts."""
        contexts = get_contexts(lm, self.context_settings)
        texts = [repr(row.ids) for row in self.texts(lm)]
        return {"contexts": digest_of_all(contexts.prefixes), "texts": digest_of_all(texts)}

    def cost_of(self, questions: float) -> Cost:
        """Return the cost: a pass forward and one back per step, for each context and one text."""
        rows = context_count(self.context_settings) + 1
        return Cost(passes=2.0 * rows * self.config.steps, questions=questions)

    def rows_of(self, lm: LM, edit: Edit, patch: int, beside: Row | None = None) -> Asked:
        """Return the rows of an edit: behind every context, and one other.

        Args:
            lm: The model.
            edit: The edit.
            patch: Number of its group's earlier patch in the active stack; -1: none.
            beside: The other text; None: a single token, which no loss looks at.
        """
        ways = get_contexts(lm, self.context_settings)
        rows = [
            ending(lm, lm.row_of(way.put(edit), prefix=way.prefix), self.config.stop, edit)
            for way in ways
        ]
        other = beside or Row(rows[0].ids[:1], (0,), (), 1)
        return Asked.of(patched(rows, [patch] * len(rows)), *patched([other], [patch]))

    def in_turn(
        self, lm: LM, groups: Sequence[Sequence[Edit]], bare: Sequence[Patch], at_once: int
    ) -> Iterator[tuple[list[int], list[Asked]]]:
        """Yield the edits to write: of every group the first one, then the second ones, and so on.

        What the caller does with them runs under the groups' earlier patches.

        Args:
            lm: The model.
            groups: Requests of each group.
            bare: The earlier patch of each group, without its memory.
            at_once: Groups that are written side by side, at most.

        Yields:
            Numbers of groups, and the rows of each one's edit.
        """
        for position in range(max(map(len, groups))):
            members = [g for g, group in enumerate(groups) if len(group) > position]
            for numbers, patches in under(lm, [bare[g] for g in members]):
                here = [members[i] for i in numbers]
                asked = [
                    self.rows_of(lm, groups[g][position], patch)
                    for g, patch in zip(here, patches, strict=True)
                ]
                for part in chunks(lm, asked, at_once):
                    yield [here[i] for i in part], [asked[i] for i in part]
