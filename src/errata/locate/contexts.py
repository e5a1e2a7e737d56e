"""Context templates: ways to put a prompt, so that an edit does not hang on one of them.

Texts in front of it are sampled once from the unedited model with a seed of their own and kept in
the cache folder, because keys depend on them; or they are given explicitly. `chat` adds the prompt
as a message in the model's chat.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit, in_chat
from errata.config import Settings
from errata.errors import ConfigError, ModelError
from errata.model.chat import frame_of
from errata.model.tokens import Row
from errata.progress import watched
from errata.spacing import AUTO
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
    "wise": (("I", "You", "Because", "Yes", "Q: "), ((5, 1), (10, 1))),
    "bare": ((), ()),
}

Mean = Literal["flat", "two_level"]


class ContextSettings(Settings):
    """How the prompts of an edit are varied while keys and values are computed."""

    contexts: str | tuple[str, ...] = Field(
        default="rome",
        description="Texts in front of the prompt: a recipe sampled from the unedited model "
        "(rome, easyedit: 21 contexts, uniedit, wise: 11, memit: 6, bare: only the prompt) or a "
        "list of templates that end in {}; with +chat (rome+chat) also in the model's chat, so "
        "that the edit holds there too, and chat alone stands for the default with +chat",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampled contexts")
    sink_prefix: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: where the subject stands at a position whose keys are attention-sink "
        "keys (measured), the edit is computed behind a neutral text; off: as published, warned of",
    )


CHAT = "chat"


@dataclass(frozen=True)
class Context:
    """One way to put the prompt of an edit.

    Attributes:
        prefix: Text in front of it.
        other: Put it the other way than the edit says: as a user's message in the chat if the edit
            is plain text, and as plain text if it is asked in the chat.
    """

    prefix: str = ""
    other: bool = False

    def put(self, edit: Edit) -> Edit:
        """Return the edit, asked this way."""
        if not self.other:
            return edit
        return replace(in_chat(edit, "user" if edit.chat == "off" else "off"), joiner=AUTO)


@dataclass(frozen=True)
class Contexts:
    """Ways to put a prompt.

    Attributes:
        prefixes: Texts in front of it; the first is empty: the bare prompt.
        both: Whether each also stands in front of it where it is put the other way. All of them
            do, for one chat among many plain texts counts too little to be learned.
        sinks: Positions of the subject's last token at which nothing is to be read: the model's
            keys there are attention-sink keys.
        neutral: Text that stands in front of the bare prompt in that case; empty: there is none.
    """

    prefixes: tuple[str, ...]
    both: bool = False
    sinks: frozenset[int] = frozenset()
    neutral: str = ""

    def __len__(self) -> int:
        return len(self.prefixes) * (2 if self.both else 1)

    def __iter__(self) -> Iterator[Context]:
        """Yield every way, the bare prompt first."""
        for other in (False, True)[: 2 if self.both else 1]:
            yield from (Context(prefix, other) for prefix in self.prefixes)

    @property
    def bare(self) -> Contexts:
        """Only the bare prompt, or what stands for it."""
        return replace(self, prefixes=("",))

    def off_sinks(self, prefix: str, make: Callable[[str], Row]) -> Row:
        """Return a row behind a prefix; a bare one behind the neutral text if it begins at a sink.

        Args:
            prefix: The prefix wanted.
            make: Tokenises a prompt with its subject behind a prefix.
        """
        row = make(prefix)
        if prefix or not self.neutral or row.subject_last not in self.sinks:
            return row
        return make(self.neutral)

    def rows(self, edit: Edit, make: Callable[..., Row]) -> list[Row]:
        """Tokenise an edit in every way.

        Args:
            edit: The edit.
            make: `lm.row_of` with the target, `lm.prompt_of` without.
        """
        return [self.off_sinks(one.prefix, partial(_behind, make, one.put(edit))) for one in self]

    def weights(self, mean: Mean = "flat") -> Float[Tensor, " c"]:
        """Weight of each context in a mean key, float64, summing to 1.

        `flat` is ROME's plain mean. `two_level` (MEMIT and its descendants) first averages the
        prefixed prompts and then that mean with the bare prompt, which so weighs one half (plain
        and in the chat together, where it is put both ways).
        """
        n, bare = len(self), 2 if self.both else 1
        if mean == "flat" or n == bare:
            return torch.full((n,), 1 / n, dtype=torch.float64)
        weights = torch.full((n,), 0.5 / (n - bare), dtype=torch.float64)
        weights[:: len(self.prefixes)] = 0.5 / bare
        return weights


def _behind(make: Callable[..., Row], edit: Edit, prefix: str) -> Row:
    return make(edit, subject=True, prefix=prefix)


def given_contexts(templates: Sequence[str]) -> Contexts:
    """Read explicit templates such as `"I think so. {}"`; the bare prompt is put first.

    Raises:
        ConfigError: If a template is neither `chat` nor ends in its only `{}`.
    """
    prefixes = [""]
    for template in templates:
        if template == CHAT:
            continue
        if not template.endswith("{}") or template.count("{}") != 1:
            raise ConfigError(
                f"context template {template!r} does not end in its only {{}}",
                'Example: ["{}", "I think so. {}"]',
            )
        if prefix := template.removesuffix("{}"):
            prefixes.append(prefix)
    return Contexts(tuple(prefixes), CHAT in templates)


def get_contexts(lm: LM, settings: ContextSettings) -> Contexts:
    """Return the contexts that the settings ask for, sampling them only once per model and seed.

    Raises:
        ConfigError: If the recipe is unknown or a template malformed.
        ModelError: If the chat is among them, and the model has no template for it.
    """
    if holds_chat(settings.contexts):
        try:
            frame_of(lm.tokenizer, "user")
        except ModelError as error:
            raise ModelError(error.message, "Leave chat out of the contexts.") from None
    if not isinstance(settings.contexts, str):
        return given_contexts(settings.contexts)
    recipe, both = _recipe(settings)
    if recipe not in RECIPES:
        raise ConfigError(
            f"unknown recipe of contexts {settings.contexts!r}",
            f"Known: {', '.join(RECIPES)}, each also with +{CHAT}, or a list of templates that "
            "end in {}",
        )
    if not RECIPES[recipe][0]:
        return Contexts(("",), both)
    key = digest("contexts", lm.fingerprint, str(lm.dtype), recipe, settings.seed)
    path = cache_root() / "contexts" / f"{recipe}-{key}.json"
    stored = load_json(path)
    if stored is None:
        stored = sample_prefixes(lm, recipe, settings.seed)
        save_json(path, stored)
    return Contexts(("", *stored), both)


def other_forms(edits: Sequence[Edit], contexts: str | Sequence[str] | None) -> list[Edit]:
    """Return edits as they can be asked besides.

    Those that are asked in the chat as plain text; plain ones in the chat, if the contexts that an
    editor was set to hold the chat.
    """
    other = Context(other=True)
    return [other.put(edit) for edit in edits if holds_chat(contexts) or edit.chat != "off"]


def holds_chat(contexts: str | Sequence[str] | None) -> bool:
    """Return whether contexts as they are set put every prompt in the chat as well."""
    return CHAT in (contexts.split("+") if isinstance(contexts, str) else contexts or ())


def _recipe(settings: ContextSettings) -> tuple[str, bool]:
    """Return the recipe of the texts in front, and whether the chat is asked for as well."""
    words = str(settings.contexts).split("+")
    if CHAT not in words:
        return str(settings.contexts), False
    words.remove(CHAT)
    default = type(settings).model_fields["contexts"].default
    return "+".join(words) if words else str(default), True


def context_count(settings: ContextSettings) -> int:
    """Return how many contexts the settings ask for, the bare prompt among them."""
    if not isinstance(settings.contexts, str):
        return len(given_contexts(settings.contexts))
    recipe, both = _recipe(settings)
    words, lengths = RECIPES.get(recipe, ((), ()))
    return (2 if both else 1) * (1 + len(words) * sum(count for _, count in lengths))


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
    wanted = sum(limits) - sum(map(len, rows))
    with watched(f"{lm.name} writes what stands in front of prompts, tokens") as show:
        while live := [i for i, row in enumerate(rows) if len(row) < limits[i]]:
            show(wanted - sum(limits) + sum(map(len, rows)), wanted)
            _grow(lm, rows, live, generator)
    texts = [clean(str(lm.tokenizer.decode(row, skip_special_tokens=True))) for row in rows]
    return [f"{text}. " for text in texts if text]


def _grow(lm: LM, rows: list[list[int]], live: Sequence[int], generator: torch.Generator) -> None:
    """Add a token to each of the rows that are not long enough yet."""
    now = [Row(tuple(rows[i]), (len(rows[i]) - 1,), (), len(rows[i])) for i in live]
    batch = lm.batch(now, range(len(now)))
    at = torch.tensor([(j, len(row.ids) - 1) for j, row in enumerate(now)], device=lm.device)
    best, ids = lm.logits(batch, at).double().topk(TOP_K, dim=-1)
    chosen = torch.multinomial(best.softmax(-1).cpu(), 1, generator=generator)
    tokens = ids.cpu().gather(1, chosen)[:, 0].tolist()
    for i, token in zip(live, tokens, strict=True):
        rows[i].append(token)


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
