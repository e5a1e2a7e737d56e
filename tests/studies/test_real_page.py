"""docs/results-real.md is what the kept records give; they hold scores, and no text of the data."""

from __future__ import annotations

import re
from typing import Any

import pytest
from studies.common import results
from studies.real import page, plan, run, text
from studies.real.compact import compact, without_quotes
from studies.real.found import Rates, Row, check_settings, difference, rows_of, steps
from studies.real.run import RESULTS, read

from errata.editors import get_editor
from errata.evaluation import Protocol
from errata.evaluation.ability import task_names
from errata.tracing.effects import TraceSettings

KEPT = results.names(RESULTS)


def test_page_is_what_the_results_give() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == text.page_text(), "run: make results"


def test_general_ability_is_what_the_findings_say_of_it() -> None:
    """On each of the seven tasks the interval holds the accuracy before any edit."""
    before, *after = (
        found
        for cell in plan.everything()
        if cell.part == "ability" and (found := read(cell.name)) is not None
    )
    names = [name for name in before["rates"] if name.endswith("/acc")]
    assert len(names) == 7
    assert len(after) == 2  # with BLUE and without
    for found in after:
        assert found["items"] == before["items"] == 100
        for name in names:
            rate = page.accuracy(name, found)
            assert rate.low is not None
            assert rate.high is not None
            assert rate.low <= before["rates"][name] <= rate.high, name


def test_every_result_is_of_a_cell_of_the_plan() -> None:
    cells = {cell.name: cell for cell in plan.everything()}
    assert len(cells) == len(plan.everything())
    for name in KEPT:
        found = read(name)
        assert found is not None
        own = found["cell"]
        cell = cells[name]
        assert (own["editor"], own["model"], own["data"], own["first"], own["limit"]) == (
            cell.editor, cell.model, cell.data, cell.first, cell.limit,
        )  # fmt: skip
        assert own["settings"] == cell.settings, name


def texts_in(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        return {found for own in value.values() for found in texts_in(own)}
    return {found for own in value for found in texts_in(own)} if isinstance(value, list) else set()


@pytest.mark.parametrize("name", KEPT)
def test_records_hold_scores_and_no_texts(name: str) -> None:
    found = read(name)
    assert found is not None
    questions = {
        word
        for record in found["records"]
        if isinstance(record, dict)
        for word in texts_in({key: record[key] for key in ("questions", "error")})
    }
    # names of probes, one of them Natural Questions', which zsRE's locality is asked with
    assert all(re.fullmatch(r"[a-z_]+|NQ", word) or "…" in word for word in questions)


def test_findings_take_their_numbers_from_the_results() -> None:
    written = re.sub(r"\[\[[^\]]+\]\]", "", text.FINDINGS.read_text(encoding="utf-8"))
    assert not re.findall(r"\d+ %|\d+\.\d", written)


def test_a_paragraph_without_results_is_left_out() -> None:
    assert text.filled("* One.\n\n* Two [[nobody reliability]].\n\n* Three.") == "* One.\n* Three."


# ---------------------------------------------------------------------- by hand


def test_rounding_is_compared_on_the_same_records(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = plan.rounding()[:2]

    def result(hits: list[int], margin: float, cpu: float) -> dict[str, Any]:
        before = dict.fromkeys(("prefers", "margin", "greedy"), 0)
        entry = {"kind": "reliability", "name": "", "k": 1, "before": before}
        records = [
            {
                **{"id": str(n), "error": None, "edits": 1, "unit": n, "patch_bytes": 1},
                "questions": [
                    entry
                    | {"score": hit, "top1": hit, "prefers": hit, "greedy": hit}
                    | {"margin": margin + n}
                ],
            }
            for n, hit in enumerate(hits)
        ]
        return {"records": records, "finished": False, "cpu_each": cpu, "config": {}, "blocks": []}

    kept = {
        cells[0].name: result([1, 1, 1, 0], 2.0, 3.0),
        cells[1].name: result([1, 1, 0], 1.0, 1.5),  # not done yet: three in common
    }
    monkeypatch.setattr("studies.real.found.read", kept.get)
    row = page.compute_table().splitlines()[2]
    assert row.startswith("| MEMIT | 3 | 75.0 → 66.7, -33 ")
    assert "| 3.00 → 2.00 | 3.0 → 1.5 |" in row


class Words:
    """A tokenizer whose tokens are words."""

    def __call__(self, said: str, add_special_tokens: bool) -> dict[str, list[str]]:
        return {"input_ids": said.split()}


def question(kind: str, score: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind, "name": "edit", "prompt": "Where is Bern?", "target": "New Bern", "k": 1,
        "score": score, "hits": [1, 0], "top1": score, "predicted": " New", **more,
    }  # fmt: skip


def test_what_is_kept_of_a_record() -> None:
    wild = {"text": " New Bern, in the south", "score": 0.0}
    record = {
        "id": "7", "unit": 0, "edits": 1, "patch_bytes": 3, "seconds": {"edit": 0.1234567},
        "error": "'Bern' is not in \"Where?\"",
        "questions": [question("reliability", 0.5, wild=wild)],
    }  # fmt: skip
    kept = compact(record, Words())  # type: ignore[arg-type]
    assert kept["error"] == "… is not in …" == without_quotes(record["error"])
    assert kept["seconds"] == {"edit": 0.12346}
    (own,) = kept["questions"]
    assert own == {
        "kind": "reliability", "name": "edit", "k": 1, "score": 0.5, "top1": 0.5, "tokens": 2,
        "wild": {"score": 0.0, "starts": 1, "share": 0.5, "words": 5},
    }  # fmt: skip


def made(scores: list[float]) -> Row:
    records = [
        {"id": str(i), "unit": i, "edits": 2, "patch_bytes": 1500, "error": None,
         "seconds": {"edit": 1.0}, "questions": [question("reliability", score)]}
        for i, score in enumerate(scores)
    ]  # fmt: skip
    cell = plan.Cell("x_0", "single", "rome", limit=9)
    return Row((cell,), ({"records": records, "cpu_each": 0.46},))


def test_rates_and_paired_differences() -> None:
    one, two = made([1.0, 1.0, 0.0, 1.0]), made([0.0, 0.0, 0.0, 1.0])
    rate = Rates(one.good).get("reliability")
    assert rate is not None
    assert rate.value == 0.75
    assert (rate.low or 1.0) < 0.75 < (rate.high or 0.0)
    gap = difference(one, two, "reliability")
    assert gap is not None
    assert gap.low == 0.0  # never worse on any record: pairing shows it
    assert gap.value == 0.5
    same = difference(one, one, "reliability")
    assert same is not None
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)
    assert (one.counted, one.seconds(), one.bytes_each()) == ("4 of 9", "0.5", "0.8")


def test_leaks_are_closed_one_by_one() -> None:
    wild = {"score": 0.0, "starts": 1, "share": 0.5, "words": 5}
    found = steps(
        {"questions": [question("generality", 1.0, wild=wild), question("locality", 1.0)]}
    )
    assert [found[f"generality.{step}", ""] for step in ("published", "free_tokens", "starts",
            "wild")] == [[1.0], [0.5], [1], [0.0]]  # fmt: skip
    assert len(found) == 5


def test_rows_join_the_cells_of_their_plan() -> None:
    for row in rows_of("single"):
        assert len({cell.name for cell in row.cells}) == len(row.cells)
        ids = [record["id"] for record in row.records]
        assert len(ids) == len(set(ids))


def test_settings_are_kept_without_where_the_data_lie(tmp_path: Any) -> None:
    places = run.Places(tmp_path, tmp_path / "d", tmp_path)
    given = {"text": "{data}/a.txt", "deep": {"of": "{data}"}, "n": 1}
    filled = places.filled(given)
    assert filled["text"] == f"{tmp_path}/d/a.txt"
    assert places.emptied(filled) == given


def test_every_cell_can_be_asked(tmp_path: Any) -> None:
    places = run.Places(tmp_path, tmp_path, tmp_path)
    for cell in plan.everything():
        if cell.part == "trace":
            TraceSettings(**cell.settings)
            continue
        get_editor(cell.editor, places.filled(cell.settings), model=cell.model)
        if cell.part != "ability":
            Protocol(**places.filled(cell.protocol))
    sequences = {cell.name for cell in plan.everything() if cell.part == "sequence"}
    abilities = [cell for cell in plan.everything() if cell.part == "ability"]
    assert {cell.protocol["after"] for cell in abilities} - {None} <= sequences
    assert {*plan.TASKS} <= {*task_names()}


def test_heat_maps_are_drawn(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    from studies.real.figure import draw

    effects = {kind: [[0.1, None], [0.2, 0.3]] for kind in ("hidden", "ffn")}
    found = {"model": "smollm2", "roles": ["subject", "last"], "effects": effects, "window": 2}
    draw([found, {**found, "model": "gemma3"}], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_cells_of_other_settings_are_not_joined() -> None:
    def result(name: str, blocks: list[int], **config: Any) -> dict[str, Any]:
        return {"cell": {"name": name}, "blocks": blocks, "config": config}

    first = result("a_0", [3], clamp=4.0)
    check_settings([first, result("a_30", [3], clamp=4.0, later=1)])
    for other in (result("a_30", [3], clamp=0.75), result("a_30", [4], clamp=4.0)):
        with pytest.raises(ValueError, match=r"a_0 and a_30 are one row"):
            check_settings([first, other])
