"""What became of the edits of a patch, and what else moved: as asked when the patch was made.

A [`Report`][errata.patch.report.Report] reads what a patch holds (`results`, `aftermath`); asking
is the business of `errata.inspection`, which needs the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.case import Edit
from errata.data._records import thaw
from errata.store.words import counted

if TYPE_CHECKING:
    from errata.patch.patch import Patch

NOTHING = 1e-9
"""Nats below which a divergence is none: log probabilities come in float32."""

NAMED = 3
"""Neighbours that moved and are named in the one line about them."""


@dataclass(frozen=True)
class EditReport:
    """What became of one edit.

    Attributes:
        edit: The edit.
        taken: Whether the model's greedy answer under the patch is the target, token for token;
            None: it was not asked.
        taken_before: The same before the edit.
        p_before: Probability of the whole target before the edit.
        p_after: The same under the patch.
        tokens: Tokens of the target.
        right: Leading tokens of the target that the model says by itself, given those before.
        says: The model's own words under the patch, where the edit was not taken, or was and the
            word goes on ("Ulm" that becomes "Ulmab").
        tried: What was done: editor, blocks, steps.
        advice: Where it was not taken: what may help, one line each.
    """

    edit: Edit
    taken: bool | None = None
    taken_before: bool | None = None
    p_before: float | None = None
    p_after: float | None = None
    tokens: int | None = None
    right: int | None = None
    says: str | None = None
    tried: str = ""
    advice: tuple[str, ...] = ()

    @classmethod
    def of(cls, edit: Edit, result: Mapping[str, Any] | None) -> EditReport:
        """Read one entry of a patch's `results`."""
        found = result or {}
        names = ("taken", "taken_before", "p_before", "p_after", "tokens", "right", "tried")
        known = {name: found[name] for name in names if name in found}
        return cls(
            edit, **known, says=found.get("says_after"), advice=tuple(found.get("advice", ()))
        )

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "prompt": self.edit.prompt,
            "target": self.edit.target,
            "subject": self.edit.subject,
            "taken": self.taken,
            "taken_before": self.taken_before,
            "p_before": self.p_before,
            "p_after": self.p_after,
            "tokens": self.tokens,
            "right": self.right,
            "says": self.says,
            "tried": self.tried,
            "advice": list(self.advice),
        }


@dataclass(frozen=True)
class Neighbour:
    """One question beside the edits, asked of the unedited model and under the patch.

    Attributes:
        prompt: The question.
        subject: Who it is about.
        before: The unedited model's short greedy answer.
        after: The answer under the patch.
        moved: Whether they differ.
    """

    prompt: str
    subject: str
    before: str
    after: str
    moved: bool

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Sentences:
    """How far a patch moves the next token of general sentences.

    Attributes:
        count: Sentences.
        mean: Mean Kullback-Leibler divergence from the unedited model, in nats; infinite where the
            edited model gives no finite numbers.
        most: The largest one.
        worst: The sentence it belongs to.
    """

    count: int
    mean: float
    most: float
    worst: str

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        finite = {n: v if math.isfinite(v) else None for n, v in
                  (("kl_mean", self.mean), ("kl_max", self.most))}  # fmt: skip
        return {"count": self.count, **finite, "worst": self.worst}


@dataclass(frozen=True)
class Report:
    """What became of a patch's edits, and what else moved.

    Attributes:
        edits: The edits of the patch, in order.
        neighbours: Other subjects put into the edits' prompts; empty where none were asked.
        bare: The subjects of the edits, standing alone.
        sentences: General sentences; None: not asked.
        lost: Edits of the earlier patch that held under it and no longer do.
        weaker: Those that hold, with less than half of the probability.
        left_out: Edits that were asked for and that the patch does not hold.
        sequence: Of edits made one after another: what was measured along the way (`points`,
            `collapsed_after`, `stopped`).
        candidates: Of several editors that were tried in turn: the figures of each.
    """

    edits: tuple[EditReport, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    bare: tuple[Neighbour, ...] = ()
    sentences: Sentences | None = None
    lost: tuple[EditReport, ...] = ()
    weaker: tuple[EditReport, ...] = ()
    left_out: tuple[EditReport, ...] = ()
    sequence: Mapping[str, Any] | None = None
    candidates: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, patch: Patch) -> Report:
        """Read what a patch holds."""
        results = patch.results or (None,) * len(patch.edits)
        found: dict[str, Any] = thaw(patch.aftermath)
        told = found.get("sentences")
        sentences = None
        if told:
            mean, most = (_number(told.get(name)) for name in ("kl_mean", "kl_max"))
            sentences = Sentences(int(told.get("count", 0)), mean, most, str(told.get("worst", "")))
        return cls(
            tuple(EditReport.of(e, result) for e, result in zip(patch.edits, results, strict=True)),
            tuple(_neighbour(entry) for entry in found.get("neighbours", ())),
            tuple(_neighbour(entry) for entry in found.get("bare", ())),
            sentences,
            tuple(_earlier(entry) for entry in found.get("lost", ())),
            tuple(_earlier(entry) for entry in found.get("weaker", ())),
            tuple(_earlier(entry) for entry in found.get("left_out", ())),
            found.get("sequence"),
            tuple(found.get("candidates", ())),
        )

    # ------------------------------------------------------------------ figures

    @property
    def asked(self) -> bool:
        """Whether the edits were asked for."""
        return any(entry.taken is not None for entry in self.edits)

    @property
    def taken(self) -> int:
        """Number of edits that were taken."""
        return sum(entry.taken is True for entry in self.edits)

    def on(self, requests: Sequence[Edit]) -> list[EditReport]:
        """Return what became of some edits, in their order; unasked for those it does not hold."""
        known = {entry.edit: entry for entry in (*self.left_out, *self.edits)}
        return [known.get(edit, EditReport(edit)) for edit in requests]

    @property
    def missed(self) -> tuple[EditReport, ...]:
        """Edits that were not taken."""
        return tuple(entry for entry in self.edits if entry.taken is False)

    @property
    def moved(self) -> tuple[Neighbour, ...]:
        """Neighbours whose answer changed."""
        return tuple(entry for entry in self.neighbours if entry.moved)

    @property
    def share_moved(self) -> float | None:
        """Share of the neighbours that moved; None where none were asked."""
        return len(self.moved) / len(self.neighbours) if self.neighbours else None

    def metrics(self) -> dict[str, float | None]:
        """Return what gates look at: `neighbours`, `bare`, `sentences`, `sentences_max`."""
        bare = [entry.moved for entry in self.bare]
        kl = self.sentences
        return {
            "neighbours": self.share_moved,
            "bare": sum(bare) / len(bare) if bare else None,
            "sentences": None if kl is None else kl.mean,
            "sentences_max": None if kl is None else kl.most,
        }

    # ------------------------------------------------------------------ words

    def line(self) -> str:
        """Return one line about everything beside the edits; empty where nothing was asked."""
        parts = []
        if self.neighbours:
            named = [f"{entry.subject} → {entry.after or 'nothing'}" for entry in self.moved]
            text = f"{len(self.moved)} of {counted(len(self.neighbours), 'neighbour')} moved"
            if named:
                text += ": " + ", ".join(named[:NAMED]) + (" …" if len(named) > NAMED else "")
            parts.append(text)
        alone = [entry for entry in self.bare if entry.moved]
        if alone:
            text = f"“{alone[0].subject}” alone → {alone[0].after or 'nothing'}"
            parts.append(text + (f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""))
        if self.sentences is not None:
            parts.append(f"general sentences KL {nats(self.sentences.mean)}")
        return " · ".join(parts)

    def __str__(self) -> str:
        lines = []
        for entry in self.edits:
            mark = {True: "✓", False: "✗"}.get(entry.taken, "?")  # pyright: ignore[reportArgumentType, reportCallIssue]
            line = f"{mark} {entry.edit.prompt} → {entry.edit.target.strip()}"
            if entry.p_before is not None and entry.p_after is not None:
                line += f"  {entry.p_before:.4f} → {entry.p_after:.4f}"
            lines.append(line if entry.says is None else f"{line}  says {entry.says.strip()!r}")
            lines += [f"    may help: {text}" for text in entry.advice]
        for entries, what in ((self.lost, "no longer holds"), (self.weaker, "holds less firmly")):
            lines += [f"! {e.edit.prompt} → {e.edit.target.strip()} {what}" for e in entries]
        return "\n".join([*lines, *filter(None, [self.line()])])

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "edits": [entry.as_dict() for entry in self.edits],
            "taken": self.taken,
            "line": self.line(),
            "neighbours": {
                "asked": len(self.neighbours),
                "moved": len(self.moved),
                "answers": [entry.as_dict() for entry in self.neighbours],
            },
            "bare": [entry.as_dict() for entry in self.bare],
            "sentences": None if self.sentences is None else self.sentences.as_dict(),
            "lost": [entry.as_dict() for entry in self.lost],
            "weaker": [entry.as_dict() for entry in self.weaker],
            "left_out": [entry.as_dict() for entry in self.left_out],
            "sequence": thaw(self.sequence),
            "candidates": thaw(self.candidates),
        }


def nats(value: float) -> str:
    """Return a divergence in a few digits."""
    if not math.isfinite(value):
        return "infinite"
    if value >= 0.001:
        return f"{value:.3f}"
    if value >= 0.0001:
        return f"{value:.1g}"
    return "<0.0001" if value > NOTHING else "0"


def _number(value: Any) -> float:
    return math.inf if value is None else float(value)


def _neighbour(entry: Mapping[str, Any]) -> Neighbour:
    prompt, subject, before, after = (
        str(entry.get(name, "")) for name in ("prompt", "subject", "before", "after")
    )
    return Neighbour(prompt, subject, before, after, bool(entry.get("moved")))


def _earlier(entry: Mapping[str, Any]) -> EditReport:
    edit = Edit(str(entry["prompt"]), str(entry["target"]), entry.get("subject"))
    return EditReport.of(edit, {**entry, "says_after": entry.get("says")})


def plain(entries: Sequence[EditReport | Neighbour]) -> list[dict[str, Any]]:
    """Return entries as JSON values."""
    return [entry.as_dict() for entry in entries]
