"""docs/results-figures.md is what the kept numbers give, and these what the kept scores give."""

from __future__ import annotations

import pytest
from studies.figures.kept import FROM, drawn
from studies.figures.page import PAGE, SAYS, page_text
from studies.figures.plan import PICTURES_OF_THE_PAGE, RESULTS, named

from errata.reporting.figures import FIGURES, LOOKING


def test_page_is_what_the_numbers_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text(), "run: make results"


def test_every_figure_is_there() -> None:
    names = [one.figure for one in PICTURES_OF_THE_PAGE]
    assert sorted(names) == sorted([*FIGURES, *LOOKING]) == sorted(SAYS)
    text = page_text()
    for one in PICTURES_OF_THE_PAGE:  # a figure that has not been drawn is not passed over
        (line,) = [
            row for row in text.splitlines() if row.startswith(f"| {one.paper} | `{one.figure}`")
        ]
        assert ("| not drawn |" in line) == (not one.file.is_file())
        assert (f"](figures/{one.file.name})\n" in text) == one.file.is_file()


@pytest.mark.parametrize("figure", sorted(FROM))
def test_numbers_are_those_of_the_kept_scores(figure: str) -> None:
    assert not named(figure).runs
    kept = (RESULTS / f"{figure}.csv").read_text(encoding="utf-8")
    assert drawn(figure).csv() == kept, f"run: python -m studies.figures draw {figure}"
