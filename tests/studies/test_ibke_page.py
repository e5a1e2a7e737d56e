"""docs/results-ibke-real.md is what the kept records give; they hold no text of the data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from studies.common import results
from studies.ibke.answers import verdict
from studies.ibke.choose import CHOSEN
from studies.ibke.found import LOCALITY, Frontier, at_equal, at_strength, direct, good, of_part
from studies.ibke.page import PAGE, page_text
from studies.ibke.plan import CANDIDATES, NETWORKS, PARTS, REFERENCE, ROUNDS
from studies.ibke.run import RESULTS, key_of, read
from studies.real.found import Rate

KEPT = results.names(RESULTS)


def test_page_is_what_the_results_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text(), "run: make results"


@pytest.mark.parametrize("part", PARTS)
def test_networks_of_a_part_are_tested_on_the_same_records(part: str) -> None:
    found = of_part(part)
    if not found:
        pytest.skip("not measured yet")
    first = next(iter(found.values()))
    longest = max(found.values(), key=lambda own: own["limit"])
    every = [record["id"] for record in longest["records"]]
    assert len(set(every)) == len(every) == longest["limit"]
    for own in found.values():
        ids = every[: own["limit"]]  # all begin with the file's first
        assert own["data_version"] == first["data_version"]
        assert own["training"]["data"] == first["training"]["data"]
        if own["training"]["loop"]["seed"] == first["training"]["loop"]["seed"]:  # which draws
            assert own["training"]["shared"] == first["training"]["shared"]
        assert own["training"]["loop"]["steps"] == first["training"]["loop"]["steps"]
        for strength in Frontier(own).strengths:
            assert [r["id"] for r in at_strength(own, strength)] == ids
        assert set(own.get("rounds", {})) <= {key_of(*step) for step in ROUNDS}
        for records in own.get("rounds", {}).values():
            assert [r["id"] for r in records] == ids
    if part == "seen":
        for row in direct().values():
            theirs = {record["id"] for record in row.records}
            assert theirs <= set(every) or set(every) <= theirs
            assert row.results[0]["fingerprint"] == first["fingerprint"]
            assert row.results[0]["data_version"] == first["data_version"]


@pytest.mark.parametrize("name", KEPT)
def test_no_strength_is_the_unedited_model(name: str) -> None:
    found = read(name)
    assert found is not None
    assert name in NETWORKS
    if found.get("strengths"):
        # in bfloat16 another batch rounds otherwise: one answer of a hundred may change
        assert Frontier(found).rates[0].rates[LOCALITY] >= 0.99


@pytest.mark.parametrize("name", KEPT)
def test_no_text_and_no_path_is_kept(name: str) -> None:
    found = read(name)
    assert found is not None
    questions = [q for record in good(found["records"]) for q in record["questions"]]
    assert questions
    assert not any({"prompt", "target", "answer"} & q.keys() for q in questions)
    assert "/" not in json.dumps(found["training"]["settings"])
    assert all(d["spec"].split(":")[1].startswith("{data}/") for d in found["training"]["data"])


def test_what_the_choice_of_rounds_rests_on_is_kept() -> None:
    names = results.names(CHOSEN)
    assert names
    for name in names:
        assert name in NETWORKS
        found = results.read(CHOSEN, name)
        assert found is not None
        assert set(found) == {"records", "rates"}
        assert list(found["rates"]) == [key_of(*step) for step in CANDIDATES]
        assert set(ROUNDS) <= set(CANDIDATES)
        once = found["rates"][key_of(1.0, 1)]
        for step in ROUNDS:  # what all of them were taken for
            assert found["rates"][key_of(*step)]["Rel"] > once["Rel"]


def made_up(points: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Return ten records per strength with these rates of generality and locality at top 1."""

    def records(generality: float, locality: float) -> list[dict[str, Any]]:
        def asked(kind: str, rate: float, number: int) -> dict[str, Any]:
            right = float(number < round(10 * rate))
            return {"kind": kind, "name": kind, "k": 5, "score": 1.0, "top1": right}

        return [
            {"id": str(n), "error": None, "questions": [
                asked("generality", generality, n), asked("locality", locality, n)
            ]}
            for n in range(10)
        ]  # fmt: skip

    own = {strength: records(*rates) for strength, rates in points.items()}
    return {"records": own.pop("1"), "strengths": own}


def test_generality_is_compared_where_locality_is_equal() -> None:
    one = made_up({"0": (0.0, 1.0), "1": (0.8, 0.6)})
    two = made_up({"0": (0.0, 1.0), "0.5": (0.4, 0.8), "1": (0.5, 0.6), "1.3": (0.6, 0.4)})
    found = at_equal(one, two)
    assert found is not None
    level, own, theirs, gap = found
    assert (level, own.value, theirs.value) == pytest.approx((0.6, 0.8, 0.5))
    assert gap.value == pytest.approx(0.3)
    # between two strengths in a straight line: the other's locality is the higher one
    far = made_up({"0": (0.0, 1.0), "1": (0.2, 0.8)})
    found = at_equal(one, far)
    assert found is not None
    assert (found[0], found[1].value, found[2].value) == pytest.approx((0.8, 0.4, 0.2))
    assert at_equal(one, made_up({"1": (0.5, 0.2), "1.3": (0.6, 0.1)})) is None


def test_rounds_are_compared_where_both_go_as_the_reference_does() -> None:
    usual = key_of(*REFERENCE)
    one, two = (
        {**made_up({"0": (0.0, 1.0), "1": (0.9, 0.1)}), "rounds": {
            "long": own.pop("1"), usual: own.pop("0.5"),
        }}
        for own in (
            made_up({"1": (0.6, 0.4), "0.5": (0.4, 0.6), "2": (0.0, 0.0)}),
            made_up({"1": (0.5, 0.4), "0.5": (0.2, 0.8), "2": (0.0, 0.0)}),
        )
        for own in [{"1": own["records"], **own["strengths"]}]
    )  # fmt: skip
    found = at_equal(one, two, rounds=True)
    assert found is not None
    level, own, theirs, _ = found
    # the higher of 0.6 and 0.8; half way from no update to the first one's 0.4 at 0.6
    assert (level, own.value, theirs.value) == pytest.approx((0.8, 0.2, 0.2))
    assert Frontier(one, rounds=True).strengths == ["0", "long", usual]


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (Rate(0.1, 0.06, 0.2), "Yes, also"),
        (Rate(0.1, 0.02, 0.2), "Yes by the estimate"),
        (Rate(0.1, -0.02, 0.2), "Not told apart"),
        (Rate(0.02, 0.01, 0.03), "No"),
        (Rate(-0.2, -0.3, -0.1), "No"),
    ],
)
def test_verdicts_follow_from_the_interval(gap: Rate, words: str) -> None:
    assert verdict(gap).startswith(words)
