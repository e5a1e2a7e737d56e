"""docs/results-sequences.md is what the committed results give."""

from __future__ import annotations

import pytest
from studies.common import results
from studies.sequences.page import PAGE, page_text
from studies.sequences.run import RESULTS


def test_page_is_what_the_results_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text(), "run: make results"


@pytest.mark.parametrize("name", results.names(RESULTS))
def test_rates_are_those_of_the_records(name: str) -> None:
    found = results.read(RESULTS, name)
    assert found is not None
    for kind in ("reliability", "generality", "locality"):
        scores = [s for r in found["records"] for k, s, _ in r["asked"] if k == kind[0]]
        if found["summary"][kind] is not None:
            mean = sum(scores) / len(scores)
            assert found["summary"][kind] == pytest.approx(mean, abs=1e-4)  # scores: four digits
