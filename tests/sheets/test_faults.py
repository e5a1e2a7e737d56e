"""Sheets that contradict themselves: everything is named, in one go."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest

from errata.errors import DataError
from errata.sheets import Sheet
from errata.sheets.faults import SHOWN
from tests.sheets.conftest import fact

Make = Callable[..., Sheet]
FRANCE = "The capital of France is"
ITALY = "The capital of Italy is"


def test_every_contradiction_is_named(sheet: Make) -> None:
    lines = [
        fact("France"),
        fact("France", "Oslo", id="two"),
        fact("Italy", "Bern"),
        fact("Peru", "Lima", id="france"),
        fact("Italy", "Bern", id="again", owner="me"),
        fact("Spain"),
    ]
    with pytest.raises(DataError) as error:
        sheet(lines)
    head, *named = error.value.message.splitlines()
    assert head == "3 contradictions in the sheet:"
    for told, parts in zip(
        named,
        (
            ("line 2: ", f"{FRANCE!r} is 'Rome' in france and 'Oslo' in two", "line 1"),
            ("line 4: ", "the id 'france' occurs twice; first at", "line 1"),
            ("line 5: ", f"{ITALY!r} is 'Bern' twice, in italy and again", "line 3"),
        ),
        strict=True,
    ):
        assert all(part in told for part in parts), told
    assert error.value.hint is not None
    assert "valid_until" in error.value.hint
    assert "another id" in error.value.hint


HOLDS, KEEPS = "holds", "keeps"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({}, {KEEPS: [{"prompt": ITALY, "target": "Milan"}]}, "'Milan' in keeps of france"),
        ({}, {KEEPS: [ITALY]}, "what the unedited model says in keeps of france"),
        ({}, {HOLDS: [ITALY]}, "'Paris' in holds of france"),
        ({}, {HOLDS: [{"prompt": ITALY, "target": "Rome"}]}, None),
        ({}, {KEEPS: [{"prompt": ITALY, "target": " Rome"}]}, None),
        ({}, {KEEPS: [{"prompt": ITALY, "target": "Milan", "chat": "user"}]}, None),
        ({"valid_until": "2020-01-01"}, {KEEPS: [ITALY]}, None),
        ({HOLDS: ["It is"]}, {HOLDS: ["It is"]}, "'Rome' in holds of italy and 'Paris' in holds"),
        ({HOLDS: ["It is"]}, {KEEPS: [{"prompt": "It is", "target": "so"}]}, "'so' in keeps of"),
        ({HOLDS: ["It is"]}, {KEEPS: ["It is"]}, None),  # what the model says may be just that
        ({KEEPS: ["It is"]}, {KEEPS: ["It is"]}, None),
    ],
)
def test_what_holds_and_what_is_kept_has_to_agree(
    sheet: Make, first: dict[str, Any], second: dict[str, Any], said: str | None
) -> None:
    lines = [fact("Italy", **first), fact("France", "Paris", **second)]
    for order in (lines, lines[::-1]):
        if said is None:
            assert len(sheet(order).facts) == 2
            continue
        with pytest.raises(DataError, match="line 2") as error:
            sheet(order)
        if order is lines:
            assert said in error.value.message


def test_a_fact_that_contradicts_itself(sheet: Make) -> None:
    with pytest.raises(DataError, match=r"'Rome' in italy and 'Milan' in keeps of italy\n"):
        sheet([fact("Italy", keeps=[{"prompt": ITALY, "target": "Milan"}])])


def test_ten_thousand_facts_take_one_pass(sheet: Make) -> None:
    lines = [fact(f"Land {n}", holds=[f"Capital {n}"]) for n in range(5_000)]
    begun = perf_counter()
    assert len(sheet(lines).facts) == 5_000
    whole = perf_counter() - begun
    with pytest.raises(DataError) as error:
        sheet([*lines, *({**line, "id": f"{line['id']}b", "target": "Oslo"} for line in lines)])
    assert perf_counter() - begun < 10 * whole + 1
    named = error.value.message.splitlines()
    assert named[0] == f"more than {SHOWN} contradictions in the sheet:"
    assert len(named) == SHOWN + 2
