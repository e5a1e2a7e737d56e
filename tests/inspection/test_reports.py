"""What people reported: an edit spoils an earlier one, or its neighbours, and nothing says so."""

from __future__ import annotations

import pytest

import errata
from errata.errors import EditError

FRANCE = ("The capital of France is the city named", "Tokyo", "France")
GERMANY = ("The capital of Germany is the city named", "Oslo", "Germany")


@pytest.fixture(scope="module")
def lm() -> errata.LM:
    return errata.load("pocket")


def test_grace_shrinks_the_ball_of_an_earlier_edit(lm: errata.LM) -> None:
    """REPORTS 5: P(Tokyo) 0.999, and 0.238 after an unrelated edit."""
    first = errata.edit(lm, *FRANCE[:2], subject=FRANCE[2], editor="grace")
    assert first.report.taken == 1
    other = ("The author of Dracula is", "Jane Austen")
    second = errata.edit(lm, *other, subject="Dracula", editor="grace", after=first)
    report = second.report
    (spoilt,) = (*report.lost, *report.weaker)
    assert spoilt.edit.target == "Tokyo"
    assert spoilt.p_before is not None
    assert spoilt.p_after is not None
    assert spoilt.p_after < 0.5 < spoilt.p_before
    (entry,) = report.on([errata.Edit(*other, "Dracula")])
    assert entry.taken


def test_seracs_scope_takes_a_neighbour(lm: errata.LM) -> None:
    """REPORTS 17: Italy's P(Rome) 1.0, and 0.0 after France and Germany."""
    first = errata.edit(lm, *FRANCE[:2], subject=FRANCE[2], editor="serac")
    report = errata.edit(lm, *GERMANY[:2], subject=GERMANY[2], editor="serac", after=first).report
    italy = next(entry for entry in report.neighbours if entry.subject == "Italy")
    assert (italy.before, italy.moved) == ("Rome", True)
    assert italy.after != "Rome"
    assert "neighbours moved: " in report.line()


@pytest.mark.parametrize("editor", ["ft", "rome"])
def test_two_answers_to_one_prompt(lm: errata.LM, editor: str) -> None:
    """REPORTS 16: 0.512 and 0.488, or the later one wins, without a word."""
    edits = [errata.Edit(FRANCE[0], target, "France") for target in ("Tokyo", "Berlin")]
    with pytest.raises(EditError, match="two edits conflict") as caught:
        errata.edit(lm, edits, editor=editor)
    assert "'Tokyo'" in caught.value.message
    assert "'Berlin'" in caught.value.message
    assert errata.edit(lm, edits, editor=editor, conflicts="keep").report.taken <= 1


def test_several_editors_from_python(lm: errata.LM) -> None:
    patch = errata.edit(lm, *FRANCE[:2], subject=FRANCE[2], editor=["none", "ft", "grace"])
    rows = {row["editor"]: row for row in patch.report.candidates}
    assert rows["none"]["taken"] == 0
    assert [name for name, row in rows.items() if row["chosen"]] == [patch.meta["editor"]]
    chosen = rows[patch.meta["editor"]]
    assert chosen["taken"] == 1
    assert all(chosen["moved"] <= row["moved"] for row in rows.values() if row.get("taken") == 1)
