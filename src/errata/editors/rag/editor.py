"""RAG: the honest row of every table. Facts are found by a sentence encoder and told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from errata.case import Edit
from errata.editors.base import Cost, Editor, EditorConfig, under
from errata.editors.contradictions import refuse_conflicts
from errata.editors.ike.encoder import resolved
from errata.editors.rag.facts import KIND, Confirm, Fact, FactMemory, Use
from errata.editors.rag.route import encoder_of
from errata.errors import EditError, PatchError
from errata.model.lm import LM
from errata.patch import Patch
from errata.patch.changes import Route


class RagConfig(EditorConfig):
    """Settings of RAG."""

    encoder: str = Field(
        default="auto",
        description="Sentence encoder: a Hub id or folder; minilm or mpnet: from packages, without "
        "the Hub; own: the model itself; lexical: words alone; auto: own for pocket, minilm where "
        "its package is installed, else sentence-transformers/all-MiniLM-L6-v2",
    )
    keys: Literal["prompt", "fact"] = Field(
        default="prompt",
        description="What a question is compared with: the prompts of the facts, or prompts with "
        "their answers",
    )
    threshold: float = Field(
        default=0.5, ge=-1, description="Cosine from which a fact is near a question"
    )
    top: int = Field(default=1, ge=1, description="Most facts that are told, the nearest ones")
    confirm: Confirm = Field(
        default="none",
        description="model: the model itself is asked whether a fact answers the question, and "
        "facts that it says no to are not told; contrast: nor those that it says yes to no sooner "
        "than to a fact that has nothing to do with it",
    )
    form: Literal["bare", "new_fact", "told"] = Field(
        default="told",
        description="Wording: facts a line each, `New fact:` in front of each, or an "
        "introduction and dashes",
    )
    conflicts: Literal["refuse", "replace"] = Field(
        default="refuse",
        description="Edits of one group with the same prompt and different targets: refuse them, "
        "or let the later one win, as it does over earlier edits",
    )
    memory_gb: float = Field(
        default=4.0, gt=0, description="Most that keys may take; an edit that needs more is refused"
    )


class Rag(Editor):
    """Facts near a question are put in front of it; all other questions go to the model alone."""

    name = "rag"
    title = "RAG"
    paper = (
        "Lewis et al., Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks, 2020, "
        "arXiv:2005.11401; confirmation after He et al., Knowledge Updating? No More Model "
        "Editing! Just Selective Contextual Reasoning, 2025, arXiv:2503.05212"
    )
    needs = ()
    weights = False
    batch = "memory"
    sequence = "grows"
    in_turns = True
    exports = ()
    Config = RagConfig
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # searched, and twice the neighbours of 300 facts of WikiBigEdit: docs/memory-editors.md
        "smollm2": {"threshold": 0.7},
    }
    config: RagConfig

    def prepare(self, lm: LM) -> None:
        """Load the sentence encoder."""
        encoder_of(lm, resolved(lm, self.config.encoder))

    def made_of(self, lm: LM) -> dict[str, str]:
        """Return which encoder it is."""
        return {"encoder": resolved(lm, self.config.encoder)}

    def cost(self, lm: LM) -> Cost:
        """An edit is encoded; a question near a fact is asked again behind it."""
        return Cost(passes=0.5, questions=2.2)

    def _use(self, lm: LM) -> Use:
        config = self.config
        return Use(
            resolved(lm, config.encoder), config.keys, config.threshold, config.top,
            config.confirm, config.form,
        )  # fmt: skip

    def check_together(self, group: Sequence[Edit]) -> None:
        """Refuse two answers to one prompt, unless the later one may win.

        Raises:
            EditError: Names the later edit.
        """
        if self.config.conflicts == "refuse":
            refuse_conflicts(group, instead="replace")

    # ------------------------------------------------------------------ editing

    @torch.no_grad()
    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Keep each group's facts with their embeddings; nothing is trained."""
        use = self._use(lm)
        embed = encoder_of(lm, use.encoder)
        for own in groups:
            for edit in own:
                lm.row_of(edit)  # refuses what cannot be asked
        facts = [[Fact(edit.prompt, edit.target, edit.joiner) for edit in own] for own in groups]
        keys: dict[int, torch.Tensor] = {}
        bare = [patch.split(KIND, Route)[0] for patch in before]
        if use.encoder == "own":  # the model without any patch reads the questions as well
            bare = [Patch() for _ in bare]
        for numbers, _ in under(lm, bare):
            texts = [
                fact.prompt.strip() if use.keys == "prompt" else fact.text
                for g in numbers
                for fact in facts[g]
            ]
            parts = embed(texts).split([len(facts[g]) for g in numbers])
            keys.update(zip(numbers, parts, strict=True))
        patches = []
        for g, (group, patch) in enumerate(zip(groups, before, strict=True)):
            memory = _earlier(patch, use).grown(facts[g], keys[g])
            size = memory.keys.numel() * memory.keys.element_size() / 1e9
            if size > self.config.memory_gb:
                raise EditError(
                    f"the memory would hold {len(memory)} facts, {size:.3g} GB; the limit is "
                    f"{self.config.memory_gb:g} GB",
                    f"Example: --set memory_gb={2 * size:.2g}", edits=list(group),
                )  # fmt: skip
            patches.append(self.make_patch(lm, [memory.change(use)], group))
        return patches

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put the grown memory in the place of the earlier one, behind all other changes."""
        return before.split(KIND, Route)[0] + added


def _earlier(patch: Patch, use: Use) -> FactMemory:
    """Return the facts of an earlier patch; none if it has none.

    Raises:
        PatchError: If they cannot be continued: several memories, or keys of another encoder.
    """
    own = patch.split(KIND, Route)[1]
    if not own:
        return FactMemory((), torch.zeros(0, 0))
    if len(own) > 1:
        raise PatchError(
            f"the earlier patch holds {len(own)} memories of RAG",
            "Edit after one patch (--after) instead of adding two.",
        )
    had = Use.of(own[0].config)
    if (had.encoder, had.keys) != (use.encoder, use.keys):
        raise PatchError(
            f"the earlier patch was made with encoder={had.encoder} and keys={had.keys}, not with "
            f"{use.encoder} and {use.keys}: its keys cannot be compared with new ones",
            f"Edit with --set encoder={had.encoder} --set keys={had.keys}.",
        )
    return FactMemory.of(own[0].config, own[0].weights)
