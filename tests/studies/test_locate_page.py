"""docs/results-locate.md is what the committed results give."""

from __future__ import annotations

import json
import re

import pytest
from studies.locate import page, plan, text
from studies.locate.found import Results
from studies.locate.run import read


def test_page_is_what_the_results_give() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == text.page_text(), "run: make results"


def test_every_run_of_the_plan_has_a_result_with_its_settings() -> None:
    for run in plan.everything():
        found = read(run.name)
        assert found is not None, run.name
        made = {k: v for k, v in found["run"].items() if k != "settings"}
        assert made == {k: v for k, v in vars(run).items() if k != "settings"}
        assert found["run"]["settings"] == json.loads(json.dumps(run.settings)), run.name


def test_findings_take_their_numbers_from_the_results() -> None:
    """Every decimal number of the findings stands in a place that the page fills."""
    written = re.sub(r"\[\[[^\]]+\]\]", "", text.FINDINGS.read_text(encoding="utf-8"))
    assert not re.findall(r"\d+\.\d", written)


def test_a_place_without_a_result_is_refused() -> None:
    with pytest.raises(ValueError, match="no result"):
        text.filled("[[rate sequence nobody rel]]", Results())
