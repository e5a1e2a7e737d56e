"""Causal tracing: which blocks recall what a model knows of a subject, at which tokens.

A fact's subject is corrupted by noise until the model no longer says the answer; then single clean
states are put back, and how much of the answer's probability returns is their indirect effect
(Meng et al. 2022, section 2 and appendix B). Averaged over facts that the model knows, the effect
of the FFN at the subject's last token shows where subjects are recalled. That peak is what
`layer=auto` means for a model that was traced.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.cache import digest, folder_name, load_json, load_tensors, save_json, save_tensors
from errata.case import Edit
from errata.config import Settings, did_you_mean
from errata.errors import ConfigError, DataError, EditError
from errata.files import cache_root
from errata.locate.keys import Place
from errata.locate.restore import Item, Runs, embedding_std, noise_of, subject_of, together
from errata.tokens import Row

if TYPE_CHECKING:
    from errata.lm import LM

log = logging.getLogger(__name__)
FORMAT = 1

KINDS: dict[str, Place] = {"hidden": "block", "ffn": "ffn", "attn": "attn"}
"""What can be put back: the output of a block, or of its FFN or attention in a window of blocks."""

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "middle tokens after",
    "last token",
)
"""What tokens are to a prompt. A subject of one token counts as its last one; so does a subject
that ends the prompt. A single token behind the subject is the last token."""
SUBJECT_LAST = ROLES.index("last subject token")

WINDOW_LAYERS = 10
"""Blocks in which the output of FFN or attention is put back together, in a deep model."""
EDITED_LAYERS = 5
"""Blocks that the published tables let multi-layer editors share an update over."""
RESAMPLES = 1000
SAVE_SECONDS = 30.0

Progress = Callable[[int, int], None]


class TraceSettings(Settings):
    """How facts are corrupted and restored; the defaults are the published ones."""

    samples: int = Field(default=10, ge=1, description="Draws of noise per fact")
    noise: float = Field(
        default=3.0,
        gt=0,
        description="Standard deviation of the noise, relative to that of the embeddings of the"
        " subjects",
    )
    window: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="Neighbouring blocks in which FFN or attention is restored together; auto: 10"
        " from 30 blocks on, a third of the depth (rounded down, odd) below",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the noise")


def window_size(settings: TraceSettings, n_layers: int) -> int:
    """Return how many blocks are restored together.

    The published 10 stand for models of 28 to 48 blocks. In a shallower one they would cover most
    of the depth, so a third of it is taken, odd so that the window has a middle.
    """
    if settings.window != "auto":
        return min(settings.window, n_layers)
    third = n_layers // 3
    return WINDOW_LAYERS if third >= WINDOW_LAYERS else max(1, third - (third + 1) % 2)


def window_of(layer: int, size: int, n_layers: int) -> range:
    """Return the blocks of the window around `layer`, cut off at both ends of the model."""
    return range(max(0, layer - size // 2), min(n_layers, layer + (size + 1) // 2))


def roles_of(row: Row) -> dict[int, list[int]]:
    """Return the tokens of a prompt by the number of their role, from the subject on.

    Tokens before the subject are left out: in a causal model nothing there is corrupted.
    """
    subject, end = subject_of(row), len(row.ids) - 1
    found: dict[int, list[int]] = {}
    for token in range(subject.start, end + 1):
        if token == subject.stop - 1:
            role = 2
        elif token < subject.stop:
            role = 0 if token == subject.start else 1
        elif token == end:
            role = 5
        else:
            role = 3 if token == subject.stop else 4
        found.setdefault(role, []).append(token)
    return found


@dataclass(frozen=True)
class Choice:
    """Blocks to edit, as a trace found them.

    Attributes:
        layer: For editors of one block: the peak of the FFN's effect at the subject's last token.
        layers: For editors of several: the blocks up to the peak.
        facts: Facts the trace averaged over.
        data: Where they came from.
        effect: Height of the peak, as a probability.
        agreement: Share of bootstrap resamples of the facts with the same peak.
        id: Names the trace: weights, facts and settings.
    """

    layer: int
    layers: tuple[int, ...]
    facts: int
    data: str
    effect: float
    agreement: float
    id: str

    def __str__(self) -> str:
        return f"block {self.layer}, traced on {self.facts} facts of {self.data} ({self.id})"


@dataclass(frozen=True)
class Trace:
    """Indirect effects of one model on facts it knows.

    Attributes:
        model: Name of the model.
        fingerprint: SHA-256 of its weights.
        data: Where the facts came from.
        asked: Facts the model was asked before enough were known.
        std: Standard deviation of the noise.
        window: Blocks in which FFN or attention are restored together.
        settings: How it was traced.
        clean: Probability of each answer in the clean run.
        corrupted: The same with the subject corrupted, mean over draws.
        effects: Per kind, what restoring adds to `corrupted`; NaN where a prompt has no token of
            that role, mean over tokens where it has several.
        id: Names weights, facts and settings.
    """

    model: str
    fingerprint: str
    data: str
    asked: int
    std: float
    window: int
    settings: TraceSettings
    clean: Float[Tensor, " f"]
    corrupted: Float[Tensor, " f"]
    effects: Mapping[str, Float[Tensor, "f 6 L"]]
    id: str = field(default="")

    def __len__(self) -> int:
        return len(self.clean)

    def mean(self, kind: str) -> Float[Tensor, "6 L"]:
        """Return the average indirect effect by role and block; NaN for a role never met."""
        return self.effects[kind].nanmean(0)

    def error(self, kind: str) -> Float[Tensor, "6 L"]:
        """Return the standard error of that average."""
        values = self.effects[kind]
        count = (~values.isnan()).sum(0)
        spread = (values - values.nanmean(0)).square().nansum(0) / (count - 1).clamp(min=1)
        return torch.where(count > 1, (spread / count).sqrt(), torch.nan)

    def choice(self) -> Choice | None:
        """Return the blocks to edit; None if the FFN was not traced."""
        return choose(self) if "ffn" in self.effects else None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values: the whole table, and what it was made from."""
        some = next(iter(self.effects.values()))
        chosen = self.choice()
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "data": self.data,
            "facts": len(self),
            "asked": self.asked,
            "noise_std": self.std,
            "window": self.window,
            "settings": self.settings.model_dump(mode="json"),
            "clean": float(self.clean.mean()),
            "corrupted": float(self.corrupted.mean()),
            "roles": list(ROLES),
            "facts_by_role": (~some[:, :, 0].isnan()).sum(0).tolist(),
            "blocks": some.shape[-1],
            "effects": {kind: _numbers(self.mean(kind)) for kind in self.effects},
            "standard_errors": {kind: _numbers(self.error(kind)) for kind in self.effects},
            "choice": None if chosen is None else asdict(chosen),
            "id": self.id,
        }


def _numbers(table: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(x) else x for x in line] for line in table.tolist()]


def choose(trace: Trace) -> Choice:
    """Choose blocks by the effect of the FFN at the last token of the subject.

    One-layer editors get its peak. Editors that share an update over several blocks get those up to
    the peak, as published for GPT-2 XL (ROME 17, MEMIT 13 to 17): five, or a third of a model of
    fewer than 15 blocks.
    """
    values = trace.effects["ffn"][:, SUBJECT_LAST].double()
    facts, n = values.shape
    mean = values.mean(0)
    layer = int(mean.argmax())
    draw = torch.Generator().manual_seed(0)
    agreed = sum(
        int(values[torch.randint(facts, (facts,), generator=draw)].mean(0).argmax()) == layer
        for _ in range(RESAMPLES)
    )
    count = min(EDITED_LAYERS, math.ceil(n / 3))
    return Choice(
        layer, tuple(range(max(0, layer - count + 1), layer + 1)), facts, trace.data,
        float(mean[layer]), agreed / RESAMPLES, trace.id,
    )  # fmt: skip


def known_facts(
    lm: LM,
    facts: Sequence[Edit],
    limit: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Edit], list[Row], int]:
    """Keep the facts that the model answers correctly: every token of the answer is the likeliest.

    Args:
        lm: The model.
        facts: Prompts with subjects; the target is the true answer.
        limit: Stop at this many known facts.
        progress: Called with (known, wanted).

    Returns:
        The known facts; for each the row of its prompt, whose label is the answer's first token;
        and how many facts were asked.

    Raises:
        EditError: If a fact has no subject, or it is not in the prompt.
    """
    known: list[Edit] = []
    rows: list[Row] = []
    asked = 0
    wanted = min(limit or len(facts), len(facts))
    while asked < len(facts) and len(known) < wanted:
        part = facts[asked : asked + max(wanted, 64)]
        for fact in part:
            if fact.subject is None:
                raise EditError(f"the fact {fact.prompt!r} has no subject; tracing corrupts it")
        full = [lm.row(fact.prompt, fact.target, fact.subject) for fact in part]
        for fact, row, score in zip(part, full, lm.score(full), strict=True):
            if len(known) == wanted:
                break
            asked += 1
            if not any(score.ranks):
                n = row.prompt_length
                known.append(fact)
                rows.append(Row(row.ids[:n], (n - 1,), row.labels[:1], n, row.subject))
        if progress is not None:
            progress(len(known), wanted)
    return known, rows, asked


def trace(
    lm: LM,
    facts: Sequence[Edit],
    settings: TraceSettings | None = None,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    limit: int | None = None,
    data: str = "given facts",
    progress: Progress | None = None,
) -> Trace:
    """Trace facts that the model knows; finished facts are kept in the cache as they come.

    An interrupted trace goes on where it stopped, with the same numbers, and a finished one is only
    read. Weights, facts and settings name the file.

    Args:
        lm: The model; it is not changed.
        facts: Prompts with subjects; the target is the true answer. Unknown ones are left out.
        settings: Noise, draws and window.
        kinds: Which states are restored: `hidden`, `ffn`, `attn`.
        limit: Number of known facts to trace.
        data: Where the facts come from, for the records.
        progress: Called with (facts done, facts).

    Raises:
        ConfigError: If a kind is unknown.
        DataError: If the model answers none of the facts.
        EditError: If a fact has no subject, or it is not in the prompt.
        ModelError: If the model holds NaN weights.
    """
    settings = settings or TraceSettings()
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind of state {kind!r}", did_you_mean(kind, KINDS))
    if not kinds:
        raise ConfigError("no kind of state to restore", f"Known: {', '.join(KINDS)}")
    lm.check_finite()
    known, rows, asked = known_facts(lm, facts, limit)
    if not known:
        raise DataError(
            f"{lm.name} answers none of {asked} facts of {data} correctly",
            "Tracing needs facts that the model knows; give others with --data.",
        )
    token_ids = [[*row.ids, *row.labels, *(row.subject or ())] for row in rows]
    name = digest(FORMAT, lm.fingerprint, str(lm.dtype), settings.model_dump(), token_ids)
    table = _Table(_folder(lm) / f"{name}.safetensors", len(rows), lm.n_layers, kinds)
    std = embedding_std(lm, rows)
    window = window_size(settings, lm.n_layers)
    try:
        for group in together(lm, rows, settings.samples):
            missing = [kind for kind in kinds if not bool(table.done[kind][group].all())]
            if not missing:
                continue
            width = lm.embedding.shape[1]
            noise = [
                settings.noise * std * noise_of(rows[i], settings.samples, width, settings.seed)
                for i in group
            ]
            table.add(group, _effects(lm, [rows[i] for i in group], noise, missing, window))
            if progress is not None:
                progress(int(table.finished(kinds).sum()), len(rows))
    finally:
        table.save()  # also when interrupted: what is done is done
    effects = {kind: table.effects[kind] for kind in KINDS if kind in kinds}
    found = Trace(
        lm.name, lm.fingerprint, data, asked, settings.noise * std, window, settings,
        table.clean, table.corrupted, effects, name,
    )  # fmt: skip
    if "ffn" in found.effects:
        save_json(_folder(lm) / f"{name}.json", {"format": FORMAT, **found.as_dict()})
    return found


def _effects(
    lm: LM,
    rows: Sequence[Row],
    noise: Sequence[Tensor],
    kinds: Sequence[str],
    window: int,
) -> dict[str, Tensor]:
    """Trace some facts: clean and corrupted probabilities, and per kind the effects `[f, 6, L]`."""
    runs = Runs(lm, rows, noise, [KINDS[kind] for kind in kinds])
    clean = runs.answers().double().cpu()
    nothing = [Item(number, ()) for number in range(len(rows))]
    last = lm.n_layers - 1
    corrupted = runs.restored(nothing, "block", range(last, last + 1)).mean(1).cpu()
    found = {"clean": clean, "corrupted": corrupted}
    items = [
        Item(number, (token,))
        for number, row in enumerate(rows)
        for tokens in roles_of(row).values()
        for token in tokens
    ]
    places = [role for row in rows for role, tokens in roles_of(row).items() for _ in tokens]
    line = torch.tensor([i.fact * len(ROLES) + r for i, r in zip(items, places, strict=True)])
    count = torch.bincount(line, minlength=len(rows) * len(ROLES)).double()
    for kind in kinds:
        effects = torch.full((len(rows) * len(ROLES), lm.n_layers), torch.nan, dtype=torch.float64)
        for layer in range(lm.n_layers):
            layers = window_of(layer, 1 if kind == "hidden" else window, lm.n_layers)
            p = runs.restored(items, KINDS[kind], layers).mean(1).cpu()
            gained = p - corrupted[torch.tensor([item.fact for item in items])]
            total = torch.zeros_like(count).index_add(0, line, gained)
            effects[:, layer] = torch.where(count > 0, total / count, torch.nan)
        found[kind] = effects.view(len(rows), len(ROLES), lm.n_layers)
    return found


class _Table:
    """Effects of facts on disk: what an earlier run finished is there at once.

    Args:
        path: Its file.
        facts: Number of facts.
        layers: Number of blocks.
        kinds: Kinds that are wanted; others that the file holds are kept.
    """

    def __init__(self, path: Path, facts: int, layers: int, kinds: Sequence[str]) -> None:
        self.path = path
        stored = load_tensors(path)
        tensors = stored[0] if stored is not None else {}
        empty = torch.full((facts,), torch.nan, dtype=torch.float64)
        self.clean = tensors.get("clean", empty)
        self.corrupted = tensors.get("corrupted", empty.clone())
        self.effects: dict[str, Tensor] = {}
        self.done: dict[str, Tensor] = {}
        for kind in KINDS:
            if f"effects.{kind}" in tensors:
                self.effects[kind] = tensors[f"effects.{kind}"]
                self.done[kind] = tensors[f"done.{kind}"].bool()
            elif kind in kinds:
                shape = (facts, len(ROLES), layers)
                self.effects[kind] = torch.full(shape, torch.nan, dtype=torch.float64)
                self.done[kind] = torch.zeros(facts, dtype=torch.bool)
        self._saved, self._new = time.monotonic(), False

    def add(self, group: Sequence[int], found: Mapping[str, Tensor]) -> None:
        """Keep what was found for some facts; written to disk now and then."""
        where = list(group)
        self.clean[where], self.corrupted[where] = found["clean"], found["corrupted"]
        for kind in found.keys() & KINDS.keys():
            self.effects[kind][where] = found[kind]
            self.done[kind][where] = True
        self._new = True
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def finished(self, kinds: Sequence[str]) -> Tensor:
        """Say for each fact whether all these kinds are done."""
        return torch.stack([self.done[kind] for kind in kinds]).all(0)

    def save(self) -> None:
        """Write what has been added since the last time."""
        if not self._new:
            return
        tensors = {"clean": self.clean, "corrupted": self.corrupted}
        for kind, effects in self.effects.items():
            tensors |= {f"effects.{kind}": effects, f"done.{kind}": self.done[kind].byte()}
        save_tensors(self.path, tensors, {"format": FORMAT})
        self._saved, self._new = time.monotonic(), False


def _folder(lm: LM) -> Path:
    return cache_root() / "traces" / f"{folder_name(lm.name)}-{lm.fingerprint[:16]}"


def cached_choice(lm: LM) -> Choice | None:
    """Return the blocks that a trace of this very model chose, if it was traced before.

    Of several traces the one over most facts counts; of equal ones the newest. Nothing is computed.
    """
    if not (cache_root() / "traces").is_dir():
        return None  # spares the fingerprint of a large model
    folder = _folder(lm)
    best: tuple[int, float] | None = None
    chosen: Choice | None = None
    for path in folder.glob("*.json") if folder.is_dir() else ():
        found = load_json(path)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            continue
        choice = found["choice"]
        rank = (found["facts"], path.stat().st_mtime)
        if best is None or rank > best:
            best = rank
            chosen = Choice(**{**choice, "layers": tuple(choice["layers"])})
    return chosen
