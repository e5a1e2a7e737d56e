"""Whitened similarity of keys to an edit's key, and the gates of REP on them."""

from __future__ import annotations

import pytest
import torch
from tests.editors.conftest import *  # noqa: F403 -- the fixtures that build small editors
from tests.locate.samples import EDITS
from tests.strategies.test_rep import Make, Tiny, modules, rep

from errata.case import Case, Probe
from errata.locate.keys import edit_keys
from errata.locate.solve import factor
from errata.strategies.rep.likeness import OWN, RANDOM, UNRELATED, compared, likeness, subject_row

EXACT = 1e-9


def test_the_arithmetic_is_that_of_the_inverse_moment() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    moment = wide.T @ wide / 40
    keys = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    own = torch.randn(6, generator=generator, dtype=torch.float64)
    cosine, answer = compared(torch.cat([keys, own[None]]), own, factor(moment))
    inverse = moment.inverse()
    for at, key in enumerate([*keys, own]):
        both = key @ inverse @ own
        assert answer[at] == pytest.approx(float(both / (own @ inverse @ own)), abs=EXACT)
        sizes = (key @ inverse @ key) * (own @ inverse @ own)
        assert cosine[at] == pytest.approx(float(both / sizes.sqrt()), abs=EXACT)
    assert cosine[-1] == pytest.approx(1.0)
    plain, _ = compared(keys, own, None)
    assert torch.allclose(plain, torch.cosine_similarity(keys, own[None]))


def test_the_subject_is_marked_in_every_form(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    edit = EDITS[0]
    assert edit.subject is not None
    before, behind = edit.prompt.split(edit.subject)

    def marked(prompt: str) -> str | None:
        row = subject_row(lm, edit, Probe(prompt, "x", "generality", "g"))
        if row is None:
            return None
        assert row.subject is not None
        return lm.text(row.ids[row.subject[0] : row.subject[1] + 1]).strip()

    assert marked(f"I think so. {edit.prompt}") == edit.subject
    assert marked(f"{before}the old town{behind}") == "the old town"
    assert marked("What else is there to say") is None


def test_gates_are_those_of_the_patch(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = rep(make, "rome")
    edit = EDITS[0]
    case = Case(
        "c", (edit,),
        (Probe(f"I think so. {edit.prompt}", edit.target, "generality", "prefix"),
         Probe("The river flows through the", "town", "locality", "near")),
    )  # fmt: skip
    ((found,),) = likeness(lm, editor, [case], ["The mayor lives in Rome and works there."])  # pyright: ignore[reportArgumentType]
    assert set(found.cosine) == {OWN, "prefix", UNRELATED, RANDOM}
    (module,) = modules(editor.edit(lm, [[edit]])[0])
    parts = editor.prepared(lm)  # pyright: ignore[reportAttributeAccessIssue]
    own = edit_keys(lm, [edit], parts.contexts.bare, [found.layer])[found.layer]
    weights = {name: tensor[0].double() for name, tensor in module.weights.items()}
    key = own.mean_key[0].double()
    inner = torch.nn.functional.gelu(weights["W1"] @ key + weights["b1"])
    wanted = torch.sigmoid(weights["w2"] @ inner + weights["b2"])
    assert float(found.gate[OWN][0]) == pytest.approx(float(wanted), abs=1e-5)
    assert found.answer[RANDOM].mean().abs() < 0.2  # drawn around nothing
