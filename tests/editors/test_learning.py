"""Oracle E.22: IBKE learns on a tiny model of a few facts, and beats plain gradient steps."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from tests.nets.samples import small, untrained
from tests.tiny_models import gpt2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from errata.case import Edit
from errata.model.lm import LM
from errata.nets.capture import edit_rows
from errata.nets.update import FactorNetwork
from errata.training.calibrate import calibrate
from errata.training.config import TrainConfig
from errata.training.groups import Group
from errata.training.objective import Objective
from errata.training.prepared import Prepared

PEOPLE, TOWNS, JOBS = 48, 12, 12
ASKED = ("{} lives in", "the home of {} is in")
OTHER = "{} works as"
HELD = 16
STEPS, BATCH = 120, 8
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Edit learning rates of plain gradient steps, from far too small to far too large."""


def answer(person: int, question: str) -> str:
    draw = random.Random(f"{person} {question == OTHER}")
    return f"job{draw.randrange(JOBS)}" if question == OTHER else f"town{draw.randrange(TOWNS)}"


@pytest.fixture(scope="module")
def lm() -> LM:
    """A model that knows where every person lives, in two wordings, and what they do."""
    words = {w for q in (*ASKED, OTHER) for w in q.replace("{}", "").split()}
    words |= {f"p{i}" for i in range(PEOPLE)}
    words |= {f"town{i}" for i in range(TOWNS)} | {f"job{i}" for i in range(JOBS)}
    entries = ["<pad>", "<eos>", *sorted(words)]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(entries)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    model = gpt2(vocab_size=len(entries), n_embd=48, n_inner=96)
    drawn = np.random.default_rng(
        0
    )  # releases of transformers draw their first weights differently
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 2:
                parameter.copy_(torch.from_numpy(drawn.normal(0, 0.02, tuple(parameter.shape))))
    lm = LM(model, tokenizer, name="facts")
    questions = [(p, q) for p in range(PEOPLE) for q in (*ASKED, OTHER)]
    rows = [lm.row(q.format(f"p{p}"), answer(p, q)) for p, q in questions]
    batch = lm.batch(rows, range(len(rows)))
    labels = torch.tensor([row.labels[0] for row in rows])
    last = torch.tensor([row.positions[0] for row in rows])
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        logits = lm.run(batch).logits[torch.arange(len(rows)), last]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False)
    assert float(loss.detach()) < 0.05
    return lm


@pytest.fixture(scope="module")
def groups(lm: LM) -> list[Group]:
    """Every person moves: asked in one wording, checked in the other; others stay."""
    made = []
    for p in range(PEOPLE):
        draw = random.Random(p)
        town = draw.choice([f"town{i}" for i in range(TOWNS) if f"town{i}" != answer(p, ASKED[0])])
        other = draw.choice([i for i in range(PEOPLE) if i != p])
        edits = (Edit(ASKED[0].format(f"p{p}"), town),)
        kept = [(p, OTHER), (other, ASKED[0]), (other, ASKED[1])]
        locs = tuple(lm.row(q.format(f"p{who}"), answer(who, q)) for who, q in kept)
        gens = (lm.row(ASKED[1].format(f"p{p}"), town),)
        made.append(Group(str(p), edits, tuple(edit_rows(lm, edits)), gens, locs, 1))
    return made


def trained(lm: LM, groups: list[Group], objective: Objective, editor: Any) -> FactorNetwork:
    network = untrained(editor, lm)
    calibrate(lm, editor.sites(lm), network, groups, 0.3)
    own = network.edit_rates()
    rest = [p for p in network.parameters() if id(p) not in {id(p) for p in own}]
    optimizer = torch.optim.Adam([{"params": rest, "lr": 3e-3}, {"params": own, "lr": 1e-2}])
    g = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        drawn = torch.randint(len(groups), (BATCH,), generator=g).tolist()
        optimizer.zero_grad()
        objective.run(
            network, [groups[i] for i in drawn],
            noise=lambda number, shape: torch.randn(shape, generator=g),
            backward=lambda loss: loss.backward(),
        )  # fmt: skip
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network


def test_E22_training_beats_gradient_steps(lm: LM, groups: list[Group]) -> None:
    """On people it was not trained on, asked in a wording that the edits do not use."""
    held, known = groups[:HELD], groups[HELD:]
    editor = small("ibke", layers=(0, 1), d_m=32, l_m=4)
    prepared = Prepared(lm, editor.sites(lm), groups)
    objective = Objective(lm, prepared, TrainConfig())
    start = untrained(editor, lm)
    calibrate(lm, editor.sites(lm), start, known, 0.3)
    before = objective.run(start, held)
    after = objective.run(trained(lm, known, objective, editor), held)
    assert after["total"] < 0.5 * before["total"]

    plain = untrained(small("mend", layers=(0, 1), matrices="out", norm="none"), lm)
    steps = []
    for rate in RATES:
        with torch.no_grad():
            plain.rates.value.fill_(rate)  # type: ignore[union-attr]
        steps.append(objective.run(plain, held))
    totals = [step["total"] for step in steps]
    assert min(totals) not in (totals[0], totals[-1])  # the range of rates is wide enough
    assert after["total"] < 0.85 * min(totals)
    # larger steps generalise by destroying everything else: the best one is the one to beat
    assert after["sg"] < 0.85 * steps[totals.index(min(totals))]["sg"]

    careless = Objective(lm, prepared, TrainConfig(il_weight=0))
    moved = objective.run(trained(lm, known, careless, editor), held)
    assert after["il"] < 0.5 * moved["il"]
