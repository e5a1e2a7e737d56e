"""Ten thousand facts: contradictions are found in one pass, all of them, by every editor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.conftest import build
from tests.evaluation.stubs import Planted

from errata.case import Case, Edit
from errata.editors import editors, get_editor
from errata.editors.contradictions import SHOWN, contradictions, refuse_conflicts
from errata.errors import EditError
from errata.evaluation.editing import edit_cases
from errata.model.lm import LM
from errata.patch import Patch

MANY = 10_000
CLASHES = 40


@pytest.fixture(scope="module")
def facts() -> list[Edit]:
    """Distinct facts, of which the last forty answer the first forty otherwise."""
    found = [
        Edit(f"The mayor of town {n} is", f"person {n}", f"town {n}", id=str(n))
        for n in range(MANY - CLASHES)
    ]
    later = [replace(e, target="nobody", id=f"later {e.id}") for e in found[:CLASHES]]
    return found + later


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often an edit is asked what it is about: what is compared, and hashed."""
    count = [0]
    plain = Edit.question.fget
    assert plain is not None

    def question(self: Edit) -> tuple[str, str, str | None]:
        count[0] += 1
        return plain(self)

    monkeypatch.setattr(Edit, "question", property(question))
    return count


def test_one_pass(facts: list[Edit], asked: list[int]) -> None:
    found = contradictions(facts)
    assert asked == [MANY]
    assert found == list(zip(facts[:CLASHES], facts[-CLASHES:], strict=True))


@pytest.mark.parametrize("name", sorted(set(editors.entries) - {"none"}))
def test_every_editor_finds_all_in_a_pass(name: str, facts: list[Edit], asked: list[int]) -> None:
    editor = get_editor(name)
    with pytest.raises(EditError) as caught:
        editor.check_together(facts)
    assert asked == [MANY]
    assert caught.value.edits == tuple(facts[-CLASHES:])
    assert f"{CLASHES} of {MANY} edits conflict" in caught.value.message
    assert caught.value.message.count("'nobody'") == SHOWN
    assert caught.value.message.endswith(f"and {CLASHES - SHOWN} more")
    asked[0] = 0
    editor.check_together(facts[:-CLASHES])  # without them there is nothing to say
    assert asked == [MANY - CLASHES]


class Checked(Planted):
    """Refuses contradictions, as editors do, and changes nothing."""

    def edit_groups(self, lm: LM, groups: list[list[Edit]], before: list[Patch]) -> list[Patch]:  # type: ignore[override]
        for group in groups:
            refuse_conflicts(group)
        return [Patch() for _ in groups]


def test_an_evaluation_leaves_the_later_ones_out_in_two_passes(
    facts: list[Edit], asked: list[int]
) -> None:
    cases = [Case(str(edit.id), (edit,)) for edit in facts]
    patches, failed = edit_cases(Checked(), build("gpt2"), [cases], [None])
    assert set(failed) == {f"later {n}" for n in range(CLASHES)}
    assert isinstance(patches[0], Patch)
    # by the editor and by `edit`, of all facts and again of those that are left
    assert asked[0] <= 4 * MANY


def test_long_answers_are_cut_in_the_message() -> None:
    long = Edit("The mayor is", "Anna of Paris and " * 400)
    with pytest.raises(EditError) as caught:
        refuse_conflicts([Edit("The mayor is", "Anna"), long])
    assert "by 'Anna' and by 'Anna of Paris and " in caught.value.message
    assert len(caught.value.message) < 250
