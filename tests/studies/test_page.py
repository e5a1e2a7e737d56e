"""docs/results-pocket.md is what the committed results give."""

from __future__ import annotations

from studies.pocket import page, plan
from studies.pocket.run import read
from studies.pocket.text import page_text


def test_page_is_what_the_results_give() -> None:
    assert page.PAGE.read_text() == page_text(), "run: make results"


def test_every_run_of_the_plan_has_a_result() -> None:
    missing = [run.name for run in plan.everything() if read(run.name) is None]
    assert not missing


def test_results_were_made_with_the_settings_of_the_plan() -> None:
    for run in plan.everything():
        found = read(run.name)
        assert found is not None
        assert found["run"]["settings"] == _plain(run.settings), run.name
        assert found["run"]["training"] == _plain(run.training), run.name


def _plain(value: object) -> object:
    """Return a value as JSON holds it."""
    import json

    return json.loads(json.dumps(value))
