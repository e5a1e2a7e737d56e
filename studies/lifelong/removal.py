"""One edit of thousands taken back: what is left is what would have been built without it.

Two ways over the same facts. Where the order of edits does not matter, the edit is taken out of
what the patch holds (`errata remove`), and the result is compared with a patch that is built anew
and never saw it. Where it does, that is refused, and all others are made again (`--rebuild`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import errata
from errata.case import Edit
from errata.editors import get_editor
from errata.editors.base import Editor
from errata.evaluation.metrics import hits, mean
from errata.inspection.rebuilding import rebuilt, without
from errata.model.lm import LM
from errata.patch import Patch
from errata.patch.removal import removable, remove
from studies.common import results

KEPT = Path(__file__).parent / "removals"
NEAR = 1e-3  # kept scores are rounded


@dataclass(frozen=True)
class Form:
    """One way to build the sequence.

    Attributes:
        label: In the table.
        settings: Of UltraEdit.
        batch: Edits of one turn; None: all together.
    """

    label: str
    settings: dict[str, Any]
    batch: int | None


FORMS = {
    "free": Form("free of order (`order=free`)", {"order": "free"}, None),
    "turns": Form("in turns of a hundred", {}, 100),
}

MODELS = {"pocket": "pocket, 200 facts of the world", "smollm2": "SmolLM2, 3,000 of WikiBigEdit"}
"""In order of what it costs, and as the table calls them."""


def take_back(
    lm: LM,
    edits: Sequence[Edit],
    name: str,
    folder: Path,
    given: Path | None = None,
    every: int = 1,
) -> dict[str, Any]:
    """Build a sequence, take one edit back, build it without, and ask all of them.

    Patches are kept as they are made, so that a run that was stopped goes on with them.

    Args:
        lm: The model.
        edits: The facts, in order.
        name: Of the form.
        folder: Where patches are kept.
        given: A patch of this sequence that is there already.
        every: One in so many edits is asked.

    Returns:
        What is kept of it: numbers only.
    """
    form = FORMS[name]
    editor = get_editor("ultraedit", {**form.settings, "conflicts": "keep"}, model=lm.name)
    work = _Work(lm, editor, form, folder / name)
    whole = Patch.load(given) if given is not None else work.made("all", list(edits))
    if [edit.prompt for edit in whole.edits] != [edit.prompt for edit in edits]:
        raise SystemExit(f"{given} is no patch of these {len(edits)} edits, in this order")
    asked = list(range(0, len(edits), every))
    shown = [edits[i] for i in asked]
    before = _asked(lm, whole, shown, folder / name / "with.json")
    place, unedited = _learned(lm, shown, before)
    number = asked[place]
    rest = [edit for i, edit in enumerate(edits) if i != number]
    found: dict[str, Any] = {"edits": len(edits), "number": number + 1, "settings": form.settings,
                             "model": lm.name, "bytes": whole.nbytes}  # fmt: skip
    if removable(whole)[number]:
        left, spent = work.timed("left", lambda: remove(whole, [number + 1]))
        never = work.made("never", rest)
        found |= {"way": "taken out", "apart": apart(left, never), "built": work.spent["never"]}
    else:
        left, spent = work.timed("left", lambda: without(lm, whole, [number + 1], batch=form.batch))
        found |= {"way": "made again"}
    after = _asked(lm, left, shown, folder / name / "without.json")
    others = [i for i in range(len(shown)) if i != place]
    return {
        **found,
        "seconds": spent,
        "reliability": {
            "with": mean(before[i] for i in others),
            "without": mean(after[i] for i in others),
        },
        "asked": len(others),
        "same": sum(abs(before[i] - after[i]) < NEAR for i in others),
        "fact": {"unedited": unedited, "with": before[place], "without": after[place]},
    }


def _learned(lm: LM, edits: Sequence[Edit], scores: Sequence[float]) -> tuple[int, float]:
    """Return the first edit that a patch makes right and the model does not, and its score there.

    Where there is none: the one whose score has risen most.
    """
    plain = _scores(lm, edits)
    for number, (before, now) in enumerate(zip(plain, scores, strict=True)):
        if now == 1 > before:
            return number, before
    rises = [now - before for before, now in zip(plain, scores, strict=True)]
    number = rises.index(max(rises))
    return number, plain[number]


def _scores(lm: LM, edits: Sequence[Edit]) -> list[float]:
    """Return the share of each answer's tokens that are the likeliest, teacher-forced."""
    scores = lm.score([lm.row_of(edit) for edit in edits])
    return [mean(hits(own.ranks, own.logprobs, 1)) or 0.0 for own in scores]


class _Work:
    """Patches of one form, made once and kept with the CPU seconds they took."""

    def __init__(self, lm: LM, editor: Editor, form: Form, folder: Path) -> None:
        self.lm, self.editor, self.form, self.folder = lm, editor, form, folder
        self.spent: dict[str, float] = {}

    def made(self, name: str, edits: list[Edit]) -> Patch:
        """Return a patch of these edits, built from nothing."""
        return self.timed(
            name, lambda: rebuilt(self.lm, self.editor, edits, batch=self.form.batch)
        )[0]

    def timed(self, name: str, make: Callable[[], Patch]) -> tuple[Patch, float]:
        """Return a patch and the CPU seconds it took, made now or kept from before."""
        path, note = self.folder / name, self.folder / f"{name}.json"
        if note.is_file():
            self.spent[name] = json.loads(note.read_text())
            return Patch.load(path), self.spent[name]
        start = time.process_time()
        patch = make()
        self.spent[name] = round(time.process_time() - start, 2)
        patch.save(path, force=True)
        note.write_text(json.dumps(self.spent[name]))
        print(f"{self.form.label}, {name}: {self.spent[name]:,.0f} CPU-s", flush=True)
        return patch, self.spent[name]


def _asked(lm: LM, patch: Patch, edits: Sequence[Edit], kept: Path) -> list[float]:
    """Return the scores of all edits under a patch; kept on disk."""
    if kept.is_file():
        return json.loads(kept.read_text())
    start = time.process_time()
    with patch.applied(lm):
        found = _scores(lm, edits)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found))
    print(f"{kept.parent.name}, {kept.stem}: {time.process_time() - start:,.0f} CPU-s", flush=True)
    return found


def apart(one: Patch, other: Patch) -> float:
    """Return how far the numbers of two patches are apart, relative to the largest; 0: no bit."""
    worst = 0.0
    for a, b in zip(one.changes, other.changes, strict=True):
        left, right = a.tensors(), b.tensors()
        if left.keys() != right.keys():
            return float("inf")
        for name, tensor in right.items():
            if left[name].shape != tensor.shape:
                return float("inf")
            if not torch.equal(left[name], tensor):
                gap = float((left[name] - tensor).abs().max())
                worst = max(worst, gap / float(tensor.abs().max()))
    return worst


def take_back_of(
    model: str, name: str, data: Path, folder: Path, given: Path | None = None
) -> None:
    """Do one form on a model, and keep what came of it.

    Args:
        model: Of MODELS.
        name: Of the form.
        data: Folder of public files.
        folder: Where patches are kept.
        given: A patch of all edits that is there already.
    """
    lm, every = errata.load(model), 1
    if model == "pocket":
        cases = errata.load_cases("world", None, 200, seed=0).cases
    else:
        cases = errata.load_cases(f"wikibigedit:{data}/lifelong/wikibigedit_3k.json").cases
        # what is equal to a build without the edit, bit for bit, needs no more than a sample
        every = 10 if name == "free" else 1
    own = f"{model}-{name}"
    edits = [case.edits[0] for case in cases]
    found = take_back(lm, edits, name, folder / "removal" / model, given, every)
    results.write(KEPT, own, found)
    print(json.dumps(found, indent=1), flush=True)
