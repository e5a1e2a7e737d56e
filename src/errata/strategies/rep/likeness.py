"""How alike keys are to the key of an edit, whitened, and whether its adapter's gate opens on them.

```
perturbed   the edit's questions under the robustness suite, at the subject's last token, by test
unrelated   tokens of questions about other things, and of ordinary text
random      directions with the second moment of ordinary keys
   cosine   k^T C^{-1} k* / (|k| |k*|),  |k|^2 = k^T C^{-1} k
   answer   k^T C^{-1} k* / |k*|^2: the share of what was inserted that a rank-one update gives
            to k; the whitened similarity of the REP paper, normalised
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from errata.case import Case, Edit, Probe, how_asked
from errata.locate.keys import edit_keys
from errata.locate.solve import Factor, whiten
from errata.model.lm import LM
from errata.model.tokens import Row, find_subject
from errata.patch import Patch
from errata.strategies.rep.adapter import GatedAdapters, split
from errata.strategies.rep.data import keys_at
from errata.strategies.rep.strategy import Rep

UNRELATED, RANDOM, OWN = "unrelated", "random", "own prompt"

DRAWN = 64
"""Random directions of each edit, and tokens of ordinary text."""

TEXT_LENGTH = 64
"""Tokens that are read of each ordinary text."""


@dataclass(frozen=True)
class Likeness:
    """Keys of one edit at one block, by group.

    Attributes:
        layer: Block number.
        cosine: By group, the whitened cosine to the edit's key.
        answer: By group, the share of the inserted value that the key receives.
        gate: By group, the width of the adapter's gate, from 0 to 1.
    """

    layer: int
    cosine: Mapping[str, Float[Tensor, " m"]]
    answer: Mapping[str, Float[Tensor, " m"]]
    gate: Mapping[str, Float[Tensor, " m"]]


def compared(
    keys: Float[Tensor, "m f"], own: Float[Tensor, " f"], moment: Factor | None
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Return whitened cosine and share of the answer of keys against an edit's own key.

    Args:
        keys: The keys.
        own: The edit's key `k*`.
        moment: Factor of `C`; None: `C = I`.
    """
    keys, own = keys.double(), own.double()
    white = whiten(own[None], moment)[0].to(keys)
    both, size = keys @ white, own @ white
    lengths = (keys * whiten(keys, moment).to(keys)).sum(-1)
    return both / (lengths * size).sqrt(), both / size


@torch.no_grad()
def likeness(
    lm: LM,
    editor: Rep,
    cases: Sequence[Case],
    texts: Sequence[str],
    *,
    patches: Sequence[Patch] | None = None,
    seed: int = 0,
) -> list[list[Likeness]]:
    """Return for each case with one edit, and each edited block, what its keys are like.

    Keys are read on the unedited model: exact at the lowest edited block, without the adapters of
    lower blocks above it.

    Args:
        lm: The model.
        editor: A host with REP.
        cases: Cases with the questions of the robustness suite.
        texts: Ordinary texts.
        patches: What the editor made of each case; None: it is made here.
        seed: Of random directions and of the tokens that are drawn from texts.
    """
    edits = [case.edits[0] for case in cases]
    if patches is None:
        patches = editor.edit(lm, [[edit] for edit in edits])
    parts = editor.prepared(lm)
    own = edit_keys(lm, edits, parts.contexts, parts.layers, mean=editor.mean)
    generator = torch.Generator().manual_seed(seed)
    text_rows = lm.text_rows(texts, TEXT_LENGTH)
    found: list[list[Likeness]] = [[] for _ in cases]
    for layer in parts.layers:
        moment = parts.moments[layer]
        ordinary = torch.cat(keys_at(lm, text_rows, [range(len(r.ids)) for r in text_rows], layer))
        for number, (case, patch) in enumerate(zip(cases, patches, strict=True)):
            groups = _keys_of(lm, case, layer)
            drawn = torch.randint(len(ordinary), (DRAWN,), generator=generator)
            groups[UNRELATED] = torch.cat([groups[UNRELATED], ordinary[drawn]])
            star = own[layer].mean_key[number]
            size = len(star)
            noise = torch.randn(DRAWN, size, generator=generator, dtype=torch.float64)
            lower = None if moment is None else moment.lower
            groups[RANDOM] = (noise if lower is None else noise.to(lower) @ lower.T).to(star)
            adapter = _adapter(lm, patch, layer)
            pairs = {name: compared(keys, star, moment) for name, keys in groups.items()}
            found[number].append(
                Likeness(
                    layer,
                    {name: pair[0] for name, pair in pairs.items()},
                    {name: pair[1] for name, pair in pairs.items()},
                    {n: adapter.gates(k.float())[:, 0].sigmoid() for n, k in groups.items()},
                )
            )
    return found


def _adapter(lm: LM, patch: Patch, layer: int) -> GatedAdapters:
    own = next(module for module in split(patch)[1] if module.path == lm.site(layer).path)
    return GatedAdapters({}, {name: t.to(lm.device) for name, t in own.weights.items()})


def _keys_of(lm: LM, case: Case, layer: int) -> dict[str, Tensor]:
    """Return keys by group: each test's at the subject's last token, other questions' tokens."""
    edit = case.edits[0]
    rows: list[Row] = [lm.prompt_of(edit, subject=True)]
    at: list[list[int]] = [[rows[0].subject_last]]
    names = [OWN]
    for probe in case.probes:
        if probe.kind == "locality":
            rows.append(lm.prompt_of(probe))
            at.append(list(range(len(rows[-1].ids))))
            names.append(UNRELATED)
        elif (row := subject_row(lm, edit, probe)) is not None:
            rows.append(row)
            at.append([row.subject_last])
            names.append(probe.name)
    keys = keys_at(lm, rows, at, layer)
    groups: dict[str, list[Tensor]] = {}
    for name, own in zip(names, keys, strict=True):
        groups.setdefault(name, []).append(own)
    empty = keys[0][:0]
    groups.setdefault(UNRELATED, [empty])
    return {name: torch.cat(parts) for name, parts in groups.items()}


def subject_row(lm: LM, edit: Edit, probe: Probe) -> Row | None:
    """Return a perturbed question with its form of the subject marked; None if it has another end.

    Perturbations put a text in front of the prompt, or another form in place of the subject; what
    stands behind the subject remains.
    """
    start, end = find_subject(edit.prompt, edit.subject or "", edit.subject_at)
    before, behind = edit.prompt[:start], edit.prompt[end:]
    prompt = probe.prompt
    if not prompt.endswith(behind):
        return None
    if prompt.endswith(edit.prompt):
        form = edit.prompt[start:end]
    elif prompt.startswith(before):
        form = prompt[start : len(prompt) - len(behind)]
    else:
        return None
    # split in front of the form, so that no earlier occurrence of it is taken for it
    at = len(prompt) - len(behind) - len(form)
    return lm.row(prompt[at:], None, form, prefix=prompt[:at], **how_asked(probe))
