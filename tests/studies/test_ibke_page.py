"""docs/results-ibke-real.md is what the kept records give; they hold no text of the data."""

from __future__ import annotations

import json

import pytest
from studies.common import results
from studies.ibke.page import PAGE, direct, good, page_text
from studies.ibke.run import RESULTS, read

KEPT = results.names(RESULTS)


def test_page_is_what_the_results_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text(), "run: make results"


@pytest.mark.parametrize("name", KEPT)
def test_records_are_those_of_the_rows_beside(name: str) -> None:
    found = read(name)
    assert found is not None
    ids = [record["id"] for record in found["records"]]
    assert len(set(ids)) == len(ids) == found["limit"]
    for row in direct().values():
        theirs = {record["id"] for record in row.records}  # all begin with the file's first
        assert theirs <= set(ids) or set(ids) <= theirs
        assert row.results[0]["fingerprint"] == found["fingerprint"]
        assert row.results[0]["data_version"] == found["data_version"]


@pytest.mark.parametrize("name", KEPT)
def test_no_text_and_no_path_is_kept(name: str) -> None:
    found = read(name)
    assert found is not None
    questions = [q for record in good(found["records"]) for q in record["questions"]]
    assert questions
    assert not any({"prompt", "target", "answer"} & q.keys() for q in questions)
    assert "/" not in json.dumps(found["training"]["settings"])
    assert all(d["spec"].split(":")[1].startswith("{data}/") for d in found["training"]["data"])
