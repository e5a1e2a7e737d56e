"""The truth about an edit on a real model: what was taken, what else moved, at what cost."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

import errata
from errata.case import Edit
from errata.editors import get_editor
from errata.errors import EditError
from errata.inspection import sentences
from errata.inspection.look import look
from errata.model import named

pytestmark = pytest.mark.real

PROMPT = "The capital of France is"
FACTS = [
    Edit(PROMPT, "Tokyo", "France"),
    Edit("The Eiffel Tower is located in", "Rome", "Eiffel Tower"),
    Edit("Apple was founded by", "Bill Gates", "Apple"),
    Edit("The mother tongue of Angela Merkel is", "Spanish", "Angela Merkel"),
    Edit("The currency of Japan is the", "euro", "Japan"),
]


@pytest.fixture(scope="module")
def lm() -> errata.LM:
    there = (named.cache_root() / "models" / "smollm2" / "config.json").is_file()
    if not there and os.environ.get("ERRATA_FETCH") != "1":
        pytest.skip("SmolLM2 has not been fetched: make test-real")
    return errata.load("smollm2")


def test_fine_tuning_drags_the_neighbours_along(lm: errata.LM) -> None:
    """REPORTS 20: Germany says Tokyo at 0.986, and nothing said so."""
    report = errata.edit(lm, PROMPT, "Tokyo", subject="France", editor="ft").report
    assert report.taken == 1
    assert len(report.moved) >= 10
    assert "of 12 neighbours moved: Germany → Tokyo" in report.line()
    assert report.share_moved is not None
    assert report.share_moved > 0.8


def test_five_facts_at_once_are_told_as_they_are(lm: errata.LM) -> None:
    """REPORTS 11: most of them were not there, and were reported as saved."""
    # the strength of GPT-2 XL; small models have another one by default now
    published = {"moments_text": "world", "clamp": 0.75, "mom2_weight": 20_000.0}
    patch = errata.edit(lm, FACTS, editor="memit", **published)
    with patch.applied(lm):
        said = lm.generate([edit.prompt for edit in FACTS], 4)
    for entry, text in zip(patch.report.edits, said, strict=True):
        assert entry.taken is text.strip().startswith(entry.edit.target)
    assert 0 < patch.report.taken < len(FACTS)
    for entry in patch.report.missed:
        assert entry.tried.startswith("memit, blocks 4, 5, 6, 7, 8, 20 steps")
        if entry.edit.subject == "Apple":  # begins its prompt, where no setting helps
            continue
        assert "weigh ordinary keys less: --set mom2_weight=2000" in entry.advice
    # and the first advice is worth its line
    again = errata.edit(lm, FACTS, editor="memit", **{**published, "mom2_weight": 2000})
    assert again.report.taken > patch.report.taken
    # what a small model gets unasked: all but the subject that begins its prompt
    unasked = errata.edit(lm, FACTS, editor="memit", moments_text="world")
    assert unasked.meta["settings_from"].startswith("rule for models narrower than 1,024")
    (entry,) = unasked.report.missed
    assert entry.edit.subject == "Apple"
    assert entry.advice[0].startswith("no setting: 'Apple' begins the text")
    with unasked.applied(lm):
        (said,) = lm.generate(["The company Apple was founded by"], 4)
    assert said.strip().startswith("Bill Gates")
    another = entry.advice[1].removeprefix("another editor: --editor ")
    assert errata.edit(lm, entry.edit, editor=another).report.taken == 1


def test_odd_targets_are_told(lm: errata.LM) -> None:
    """REPORTS 11: a target with a line break, one of two hundred tokens."""
    for target in ("Tokyo\n", "Tokyo is a big town with many people. " * 25):
        (entry,) = errata.edit(
            lm, PROMPT, target, subject="France", editor="ft", steps=8, neighbourhood=False
        ).report.edits
        assert entry.tokens == len(lm.row(PROMPT, target).labels)
        assert entry.taken is (entry.right == entry.tokens)
        if entry.taken is False:
            assert entry.says is not None
            assert any("the target" in line for line in entry.advice)


@pytest.mark.parametrize("editor", ["ft", "rome"])
def test_contradictions_are_refused(lm: errata.LM, editor: str) -> None:
    with pytest.raises(EditError, match="'Tokyo' and by 'Berlin'"):
        errata.edit(lm, [FACTS[0], Edit(PROMPT, "Berlin", "France")], editor=editor)


def test_what_else_moved_costs_little_beside_the_edit(lm: errata.LM) -> None:
    """In tokens that pass a block; those of an edit go back as well, at twice the cost."""
    editor = get_editor("rome", {"moments_text": "world"}, model=lm.name)
    editor.prepare(lm)
    request = FACTS[:1]
    passed = 0

    def count(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        nonlocal passed
        passed += given[0].shape[:-1].numel()

    def tokens(run: Callable[[], object]) -> int:
        before = passed
        run()
        return passed - before

    modules = [lm.module(lm.site(block).path) for block in range(lm.n_layers)]
    handles = [module.register_forward_pre_hook(count) for module in modules]
    try:
        patch = editor.edit_one(lm, request)
        edit = tokens(lambda: editor.edit_one(lm, request))
        look(lm, patch, request)  # what the unedited model says of general sentences is kept
        bare = tokens(lambda: look(lm, patch, request, neighbourhood=False))
        whole = tokens(lambda: look(lm, patch, request))
    finally:
        for handle in handles:
            handle.remove()
    assert 0 < whole - bare < 0.15 * 3 * edit


def test_little_is_lost_by_keeping_the_most_probable_tokens(lm: errata.LM) -> None:
    patch = errata.edit(lm, PROMPT, "Tokyo", subject="France", editor="ft", ask=False)
    rows = sentences.rows_of(lm)
    before = sentences.next_tokens(lm, rows).double()
    with patch.applied(lm):
        after = sentences.next_tokens(lm, rows).double()
    whole = torch.nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(-1)
    found = sentences.divergence(sentences.unedited(lm), after)
    assert float(found.mean()) == pytest.approx(float(whole.mean()), rel=0.1)
    assert bool((found <= whole + 1e-5).all())
