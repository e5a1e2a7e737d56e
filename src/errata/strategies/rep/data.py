"""What REP's adapters are trained on: settings, the forms of an edit and their keys.

Keys are read once: they are taken in front of the adapter, and no gradient flows through the model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from errata.case import Edit, how_asked
from errata.config import Settings
from errata.locate.contexts import Contexts
from errata.locate.perturb import (
    LONG_HELD,
    LONG_WORDS,
    fit_context,
    long_contexts,
    seen_subjects,
    with_subject,
)
from errata.model.passes import capture, module_at, wide
from errata.model.tokens import Row, find_subject, patched
from errata.store.digest import seed_of

if TYPE_CHECKING:
    from errata.model.lm import LM

log = logging.getLogger(__name__)

OTHER_TOKENS = 512
"""Other tokens of one edit's own rows of which keys are read, if a loss looks at such."""

ORDINARY_TEXTS = 256
"""Ordinary texts of whose tokens keys are read, if a loss looks at such."""

ORDINARY_LENGTH = 64
"""Tokens of each."""


class RepSettings(Settings):
    """Settings of REP; the defaults are those of the released recipe."""

    rep_rank: int = Field(default=32, ge=1, description="Rank r of an adapter's map")
    rep_alpha: float = Field(
        default=32.0, gt=0, description="Scale of the map, as in LoRA: it is multiplied by alpha/r"
    )
    rep_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Dropout on what the map sees; only in training"
    )
    rep_gate_ratio: float = Field(
        default=0.1, gt=0, description="Hidden units of the gate, as a share of the key's size f"
    )
    rep_threshold: float = Field(
        default=0.9, ge=0, le=1, description="An adapter acts where its gate is above this (tau)"
    )
    rep_lr: float = Field(default=5e-4, gt=0, description="Learning rate of Adam")
    rep_steps: int = Field(default=10, ge=0, description="Steps of Adam")
    rep_batch: int = Field(
        default=15, ge=1, description="Perturbed forms per step, besides the original prompt"
    )
    rep_agg: float = Field(
        default=1.0, ge=0, description="Weight of the similarity of perturbed keys to the target"
    )
    rep_cons: float = Field(
        default=50_000.0, ge=0, description="Weight of leaving the original prompt's key alone"
    )
    rep_spread: float = Field(
        default=0.0, ge=0, description="Weight of keeping other tokens' keys away from the target"
    )
    rep_kl: float = Field(
        default=0.0, ge=0, description="Weight of leaving other tokens' keys alone"
    )
    rep_kl_kind: Literal["whiten_diff", "whiten", "mse"] = Field(
        default="whiten_diff",
        description="How that is measured: mean |k C^-1 (k' - k)|, mean -k C^-1 k', or mean "
        "(k' - k)^2",
    )
    rep_cls: float = Field(
        default=0.0,
        ge=0,
        description="Weight of teaching the gate: open at perturbed forms, closed at other tokens "
        "and in ordinary text",
    )
    rep_others: int = Field(
        default=64, ge=1, description="Other tokens per step for rep_spread, rep_kl and rep_cls"
    )
    rep_contexts: str | tuple[str, ...] = Field(
        default="easyedit",
        description="Texts in front of the perturbed forms; a recipe or templates, as in contexts",
    )
    rep_subjects: bool = Field(
        default=True,
        description="Train on other names of the subject that an edit brings and on shuffles of it",
    )
    rep_long: int = Field(default=LONG_HELD, ge=0, description="Long contexts per edit to train on")
    rep_words: int = Field(default=LONG_WORDS, ge=1, description="Words of a long context")
    rep_text: str | None = Field(
        default=None, description="Texts for long contexts; none: those of moments_text"
    )
    rep_documents: int = Field(
        default=2000, ge=1, description="Documents of that text to draw from"
    )
    rep_seed: int = Field(
        default=0, ge=0, description="Seed of the adapters' start, order of forms and dropout"
    )
    rep_data_seed: int = Field(
        default=0,
        ge=0,
        description="Seed of shuffles and long contexts; for its unseen half to be unseen, the "
        "robustness suite must have the same (and the same text, documents and words)",
    )
    rep_target: Literal["whitened", "key"] = Field(
        default="whitened",
        description="What perturbed keys should resemble: C^-1 k, the direction that the update "
        "answers to, or the edit's key k itself",
    )
    rep_compat: Literal["none", "released"] = Field(
        default="none",
        description="released: raw keys as targets on MEMIT and EMMET and no long contexts, as the "
        "released code has it",
    )

    @property
    def looks_elsewhere(self) -> bool:
        """Whether any loss looks at tokens other than the subject's last."""
        return bool(self.rep_spread or self.rep_kl or self.rep_cls)


def generator_for(edit: Edit, seed: int, layer: int) -> torch.Generator:
    """Return a generator that depends on the edit itself and not on those beside it."""
    name = f"rep/{seed}/{layer}/{edit.prompt}/{edit.subject}/{edit.target}"
    return torch.Generator().manual_seed(seed_of(name))


# ---------------------------------------------------------------------- the forms of an edit


@dataclass(frozen=True)
class Forms:
    """Rows of one edit, each with its subject marked.

    Attributes:
        original: The bare prompt.
        perturbed: Prefixed prompts with the subject in its forms, then long contexts.
        long: How many of those are long contexts (the last ones).
    """

    original: Row
    perturbed: tuple[Row, ...]
    long: int


def forms_of(
    lm: LM, edit: Edit, contexts: Contexts, texts: Sequence[str], settings: RepSettings
) -> Forms:
    """Tokenise what an edit's adapter is trained on.

    Every context is crossed with the subject, with the names of it that the edit brings and with
    the seen half of its shuffles; long contexts go with the subject alone.

    Raises:
        EditError: If the edit has no subject, or it is not in the prompt.
    """
    subject = edit.subject or ""
    original = contexts.rows(edit, lm.prompt_of)[0]
    start, end = find_subject(edit.prompt, subject, edit.subject_at)
    names = [edit.prompt[start:end]]
    if settings.rep_subjects:
        names += seen_subjects(lm, edit, settings.rep_data_seed)
    rows = []
    for name in names:
        prompt = with_subject(edit.prompt, subject, name, edit.subject_at)
        inside = prompt[start : start + len(name)]
        # split in front of the subject, so that no earlier occurrence of its form is taken for it
        rows += [
            contexts.off_sinks(
                one.prefix + prompt[:start],
                lambda text, one=one, prompt=prompt, inside=inside: lm.row(
                    prompt[start:], None, inside, prefix=text, **how_asked(one.put(edit))
                ),
            )
            for one in contexts
        ]
    long = []
    if settings.rep_long and settings.rep_compat == "none":
        drawn = long_contexts(
            texts, edit.prompt,
            words=settings.rep_words, held=settings.rep_long, seed=settings.rep_data_seed,
        )  # fmt: skip
        fitting = [fit_context(lm, text, edit.prompt, **how_asked(edit)) for text in drawn.held]
        long = [lm.prompt_of(edit, subject=True, prefix=f"{text} ") for text in fitting if text]
    return Forms(original, (*rows, *long), len(long))


def enough_words(texts: Sequence[str], words: int) -> int:
    """Return how long a long context can be: as asked for, or all there is, with a notice."""
    there = 0
    for text in texts:
        there += len(text.split())
        if there >= words:
            return words
    log.warning("the texts for long contexts have %d words; %d were asked for", there, words)
    return max(1, there)


# ---------------------------------------------------------------------- keys


@torch.no_grad()
def keys_at(
    lm: LM,
    rows: Sequence[Row],
    at: Sequence[Sequence[int]],
    layer: int,
) -> list[Float[Tensor, "p f"]]:
    """Read the keys of one block at some positions of each row.

    Args:
        lm: The model.
        rows: Tokenised prompts, each under the patch that it names.
        at: For each row, its positions; nothing after the last of them is run.
        layer: Block number.

    Returns:
        For each row, its keys in the order of its positions.
    """
    cut = [
        Row(row.ids[: max(positions, default=0) + 1], (), (), 0, patch=row.patch)
        for row, positions in zip(rows, at, strict=True)
    ]
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in lm.batches(cut):
        (keys,), _ = capture(lm, batch, [module_at(lm, layer, "ffn")])
        for row, i in enumerate(batch.index):
            found[i] = wide(keys[row, torch.tensor(at[i], dtype=torch.long, device=lm.device)])
    return found


@dataclass(frozen=True)
class Keys:
    """What one edit's adapter is trained on, at one block.

    Attributes:
        original: Key of the bare prompt.
        perturbed: Keys of the perturbed forms, at the last token of the subject.
        others: Keys of other tokens of the same rows; empty if no loss looks at them.
    """

    original: Float[Tensor, " f"]
    perturbed: Float[Tensor, "p f"]
    others: Float[Tensor, "q f"]


def read_forms(
    lm: LM,
    edits: Sequence[Edit],
    forms: Sequence[Forms],
    layer: int,
    settings: RepSettings,
    patches: Sequence[int],
) -> list[Keys]:
    """Read the keys of all rows of some edits at one block, each edit's under its patch."""
    rows: list[Row] = []
    at: list[list[int]] = []
    for edit, form, patch in zip(edits, forms, patches, strict=True):
        forms_rows = (form.original, *form.perturbed)
        places = [[row.subject_last] for row in forms_rows]
        if settings.looks_elsewhere:
            # a long context may tell of the subject: its tokens do not count as others
            spots = [
                (i, p)
                for i, row in enumerate(forms_rows[: len(forms_rows) - form.long])
                for p in range(len(row.ids))
                if p != row.subject_last
            ]
            generator = generator_for(edit, settings.rep_data_seed, -1)
            for pick in torch.randperm(len(spots), generator=generator)[:OTHER_TOKENS].tolist():
                places[spots[pick][0]].append(spots[pick][1])
        rows += patched(forms_rows, [patch] * len(forms_rows))
        at += places
    found = keys_at(lm, rows, at, layer)
    keys = []
    done = 0
    for form in forms:
        own_keys = found[done : done + 1 + len(form.perturbed)]
        done += len(own_keys)
        keys.append(
            Keys(
                own_keys[0][0],
                torch.stack([part[0] for part in own_keys[1:]]),
                torch.cat([part[1:] for part in own_keys]),
            )
        )
    return keys


@dataclass(frozen=True)
class Ordinary:
    """Tokens of ordinary text, for which gates should stay closed.

    Attributes:
        texts: The texts.
        keys: Keys of all their tokens.
        text_of: For each key, the number of its text.
    """

    texts: tuple[str, ...]
    keys: Float[Tensor, "z f"]
    text_of: Int[Tensor, " z"]

    @classmethod
    def read(cls, lm: LM, texts: Sequence[str], layer: int) -> Ordinary:
        """Read the keys of all tokens of some texts, on the unedited model."""
        kept = [(text, lm.text_rows([text], ORDINARY_LENGTH)) for text in texts]
        rows = [row for _, found in kept for row in found]
        keys = keys_at(lm, rows, [range(len(row.ids)) for row in rows], layer)
        text_of = [i for i, (_, found) in enumerate(kept) for row in found for _ in row.ids]
        return cls(tuple(text for text, _ in kept), torch.cat(keys), torch.tensor(text_of))

    def without(self, edit: Edit) -> Int[Tensor, " m"]:
        """Return which keys are of texts that name neither the subject nor another name of it."""
        names = [name.lower() for name in (edit.subject or "", *edit.subject_rephrases)]
        free = torch.tensor([not any(n in text.lower() for n in names) for text in self.texts])
        return free[self.text_of].nonzero()[:, 0]
