"""docs/results-table2.md is what the committed tables give."""

from __future__ import annotations

import csv
import tomllib

from studies.table2.page import PAGE, ROOT, TABLES, page_text


def test_page_is_what_the_tables_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text(), "run: make results"


def test_every_row_of_the_recipe_was_measured_on_every_data_set() -> None:
    recipe = tomllib.loads((ROOT / "recipes" / "table2-pocket.toml").read_text(encoding="utf-8"))
    with (TABLES / "table.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["metric"] == "reliability"]
    found = {(line["row"], line["data"], line["seeds"], line["cases"]) for line in lines}
    seeds = len(recipe["seeds"])
    assert found == {
        (row["label"], data["label"], str(seeds), str(seeds * data["limit"]))
        for row in recipe["editors"].values()
        for data in recipe["data"].values()
    }
