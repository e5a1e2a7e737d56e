"""Relations of CounterFact: some for training, others for tests, never the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.data import load_cases
from errata.errors import ConfigError, DataError


def flat(number: int, prompt: str, subject: str) -> dict[str, object]:
    return {
        "case_id": number, "prompt": prompt, "subject": subject, "target_new": "Ulm",
        "ground_truth": "Rome", "rephrase_prompt": f"So {prompt}",
        "locality_prompt": "Lucca is in", "locality_ground_truth": "Italy",
    }  # fmt: skip


def nested(number: int, relation: str) -> dict[str, object]:
    rewrite = {
        "prompt": "{} is in", "relation_id": relation, "subject": "Pisa",
        "target_new": {"str": "Ulm"}, "target_true": {"str": "Rome"},
    }  # fmt: skip
    return {
        "case_id": number, "requested_rewrite": rewrite, "paraphrase_prompts": ["Pisa lies in"],
        "neighborhood_prompts": ["Lucca is in"],
    }  # fmt: skip


FLAT = [
    flat(0, "The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),  # P103
    flat(1, "Pisa is located in the country of", "Pisa"),  # P17
    flat(2, "Pisa is located in", "Pisa"),  # P17, P30, P131 or P276
    flat(3, "Of Pisa nobody knows the", "Pisa"),  # a wording of no relation
]


def written(folder: Path, records: list[dict[str, object]]) -> str:
    path = folder / "records.json"
    path.write_text(json.dumps(records))
    return f"counterfact:{path}"


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        ({"relations": "P103"}, ["0"]),
        ({"relations": ["P17"]}, ["1"]),
        ({"relations": "P17, P30,P131,P276"}, ["1", "2"]),
        ({"without": "P103"}, ["1", "2"]),
        ({"without": ["P276"]}, ["0", "1"]),
        ({"relations": ["P17", "P103"], "without": ["P17"]}, ["0"]),
        ({}, ["0", "1", "2", "3"]),
    ],
)
def test_flat_records_are_told_by_their_wording(
    tmp_path: Path, asked: dict[str, object], ids: list[str]
) -> None:
    found = load_cases(written(tmp_path, FLAT), options=asked)
    assert [case.id for case in found.cases] == ids
    if asked:
        assert "1 records whose wording tells no relation left out" in found.notes


def test_nested_records_say_their_relation(tmp_path: Path) -> None:
    spec = written(tmp_path, [nested(0, "P17"), nested(1, "P30"), nested(2, "mine")])
    ids = {
        name: [case.id for case in load_cases(spec, options=options).cases]
        for name, options in {
            "kept": {"relations": "P30"}, "left": {"without": "P30"}, "own": {"relations": "mine"},
        }.items()
    }  # fmt: skip
    assert ids == {"kept": ["1"], "left": ["0", "2"], "own": ["2"]}


def test_the_version_says_what_was_asked_and_only_that(tmp_path: Path) -> None:
    spec = written(tmp_path, FLAT)
    plain = load_cases(spec).version
    assert load_cases(spec, options={"relations": [], "without": ()}).version == plain
    one = load_cases(spec, options={"relations": "P17,P103"}).version
    assert one not in (plain, load_cases(spec, options={"without": "P103"}).version)
    assert load_cases(spec, options={"relations": ["P103", "P17"]}).version == one


@pytest.mark.parametrize("wrong", ["P13", "p37", "P", "P37,,P103"])
def test_a_mistyped_relation_leaves_nothing_in_by_accident(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match="no relation of CounterFact; these are: P17, P19"):
        load_cases(written(tmp_path, FLAT), options={"without": wrong})


def test_no_record_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable record"):
        load_cases(written(tmp_path, FLAT), options={"relations": "P101"})


def test_the_published_files_fall_into_two_parts(shared: Path) -> None:
    folder = shared / "data" / "counterfact"
    if not folder.is_dir():
        pytest.skip("needs the public benchmark files")
    held = "P37,P103,P364,P407,P1412,P136,P413,P641,P1303"
    one = load_cases(f"counterfact:{folder}", "train", options={"relations": held})
    two = load_cases(f"counterfact:{folder}", "train", options={"without": held})
    assert not {case.id for case in one.cases} & {case.id for case in two.cases}
    assert (len(one), len(two)) == (2768, 6988)
    # and agree with what the nested form says of the same records
    nested = f"counterfact:{folder}/counterfact-nested-1129.json"
    names = {case.id: case.meta["relation_id"] for case in load_cases(nested).cases}
    for part, inside in ((one, True), (two, False)):
        told = [names[case.id] in held.split(",") for case in part.cases if case.id in names]
        assert set(told) == {inside}
