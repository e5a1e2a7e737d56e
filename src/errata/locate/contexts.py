"""Context templates: texts put in front of a prompt, so that an edit does not hang on position 0.

They are sampled once from the unedited model with a seed of their own and kept in the cache
folder, because keys depend on them; or they are given explicitly.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.config import Settings
from errata.errors import ConfigError
from errata.model.tokens import Row
from errata.store.cache import digest, load_json, save_json
from errata.store.files import cache_root

if TYPE_CHECKING:
    from errata.model.lm import LM

WORDS = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5

RECIPES: dict[str, tuple[tuple[str, ...], tuple[tuple[int, int], ...]]] = {
    # name: (seeds; "" = the start-of-text token), ((total tokens, texts per seed), ...)
    "rome": (("",), ((5, 10), (10, 10))),
    "easyedit": (WORDS, ((5, 2), (10, 2))),
    "uniedit": (WORDS, ((5, 1), (10, 1))),
    "memit": (WORDS, ((10, 1),)),
    "bare": ((), ()),
}

Mean = Literal["flat", "two_level"]


class ContextSettings(Settings):
    """How the prompts of an edit are varied while keys and values are computed."""

    contexts: str | tuple[str, ...] = Field(
        default="rome",
        description="Texts in front of the prompt: a recipe sampled from the unedited model "
        "(rome: 21 contexts, easyedit: 21, uniedit: 11, memit: 6, bare: only the prompt) or a "
        "list of templates that end in {}",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampled contexts")
    sink_prefix: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: where the subject stands at a position whose keys are attention-sink "
        "keys (measured), the edit is computed behind a neutral text; off: as published, warned of",
    )


@dataclass(frozen=True)
class Contexts:
    """Texts to put in front of a prompt.

    Attributes:
        prefixes: The first is empty: the bare prompt.
        sinks: Positions of the subject's last token at which nothing is to be read: the model's
            keys there are attention-sink keys.
        neutral: Text that stands in front of the bare prompt in that case; empty: there is none.
    """

    prefixes: tuple[str, ...]
    sinks: frozenset[int] = frozenset()
    neutral: str = ""

    def __len__(self) -> int:
        return len(self.prefixes)

    @property
    def bare(self) -> Contexts:
        """Only the bare prompt, or what stands for it."""
        return replace(self, prefixes=("",))

    def row(
        self, lm: LM, prompt: str, target: str | None, subject: str, prefix: str = "", **how: Any
    ) -> Row:
        """Tokenise a prompt behind one of the prefixes; a bare one so that no sink is read.

        Args:
            lm: The model.
            prompt: The question.
            target: The answer, or None.
            subject: The subject, as it stands in the prompt.
            prefix: What stands in front.
            how: Further arguments of `lm.row`.
        """
        row = lm.row(prompt, target, subject, prefix=prefix, **how)
        if prefix or not self.neutral or row.subject_last not in self.sinks:
            return row
        return lm.row(prompt, target, subject, prefix=self.neutral, **how)

    def weights(self, mean: Mean = "flat") -> Float[Tensor, " c"]:
        """Weight of each context in a mean key, float64, summing to 1.

        `flat` is ROME's plain mean. `two_level` (MEMIT and its descendants) first averages the
        prefixed prompts and then that mean with the bare prompt, which so weighs one half.
        """
        n = len(self)
        if mean == "flat" or n == 1:
            return torch.full((n,), 1 / n, dtype=torch.float64)
        weights = torch.full((n,), 0.5 / (n - 1), dtype=torch.float64)
        weights[0] = 0.5
        return weights


def given_contexts(templates: Sequence[str]) -> Contexts:
    """Read explicit templates such as `"I think so. {}"`; the bare prompt is put first.

    Raises:
        ConfigError: If a template does not end in its only `{}`.
    """
    prefixes = [""]
    for template in templates:
        if not template.endswith("{}") or template.count("{}") != 1:
            raise ConfigError(
                f"context template {template!r} does not end in its only {{}}",
                'Example: ["{}", "I think so. {}"]',
            )
        if prefix := template.removesuffix("{}"):
            prefixes.append(prefix)
    return Contexts(tuple(prefixes))


def get_contexts(lm: LM, settings: ContextSettings) -> Contexts:
    """Return the contexts that the settings ask for, sampling them only once per model and seed.

    Raises:
        ConfigError: If the recipe is unknown or a template malformed.
    """
    if not isinstance(settings.contexts, str):
        return given_contexts(settings.contexts)
    recipe = settings.contexts
    if recipe not in RECIPES:
        raise ConfigError(
            f"unknown recipe of contexts {recipe!r}",
            f"Known: {', '.join(RECIPES)}, or a list of templates that end in {{}}",
        )
    if not RECIPES[recipe][0]:
        return Contexts(("",))
    key = digest("contexts", lm.fingerprint, str(lm.dtype), recipe, settings.seed)
    path = cache_root() / "contexts" / f"{recipe}-{key}.json"
    stored = load_json(path)
    if stored is None:
        stored = sample_prefixes(lm, recipe, settings.seed)
        save_json(path, stored)
    return Contexts(("", *stored))


def context_count(settings: ContextSettings) -> int:
    """Return how many contexts the settings ask for, the bare prompt among them."""
    if not isinstance(settings.contexts, str):
        return len(settings.contexts)
    words, lengths = RECIPES.get(settings.contexts, ((), ()))
    return 1 + len(words) * sum(count for _, count in lengths)


@torch.no_grad()
def sample_prefixes(lm: LM, recipe: str, seed: int) -> list[str]:
    """Sample texts from the model: top 5 at temperature 1, cleaned as in the published code.

    A generator of its own leaves the global random state alone. Lengths count the seed's tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    seeds, lengths = RECIPES[recipe]
    rows: list[list[int]] = []
    limits: list[int] = []
    for total, count in lengths:
        for word in seeds:
            rows += [list(_seed_ids(lm, word)) for _ in range(count)]
            limits += [total] * count
    while live := [i for i, row in enumerate(rows) if len(row) < limits[i]]:
        now = [Row(tuple(rows[i]), (len(rows[i]) - 1,), (), len(rows[i])) for i in live]
        batch = lm.batch(now, range(len(now)))
        at = torch.tensor([(j, len(row.ids) - 1) for j, row in enumerate(now)], device=lm.device)
        best, ids = lm.logits(batch, at).double().topk(TOP_K, dim=-1)
        chosen = torch.multinomial(best.softmax(-1).cpu(), 1, generator=generator)
        tokens = ids.cpu().gather(1, chosen)[:, 0].tolist()
        for i, token in zip(live, tokens, strict=True):
            rows[i].append(token)
    texts = [clean(str(lm.tokenizer.decode(row, skip_special_tokens=True))) for row in rows]
    return [f"{text}. " for text in texts if text]


def _seed_ids(lm: LM, word: str) -> tuple[int, ...]:
    if word:
        return lm.row(word).ids
    for token in (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id):
        if isinstance(token, int):
            return (token,)
    return (lm.pad_id,)


def clean(text: str) -> str:
    """Normalise a sampled text: NFKD, blank lines and braces become spaces, outer space goes."""
    text = unicodedata.normalize("NFKD", text).replace("\n\n", " ")
    return text.replace("{", " ").replace("}", " ").strip()
