"""The sample files: made by the world, in the formats of published data sets, known to pocket."""

from __future__ import annotations

import pytest

import errata
from errata.cli.ls import What, rows_of
from errata.data import SAMPLE, datasets, load_cases, load_edits, sample_of
from errata.data._base import _SAMPLES
from errata.data._facts import load_facts
from errata.errors import ConfigError
from errata.training.sources import Source
from errata.world import World, build_world, sample_files


@pytest.fixture(scope="module")
def pocket_world() -> World:
    return build_world()


NAMES = (
    *("counterfact", "jsonl", "knowedit", "locft", "mquake", "qaedit", "rep", "uniedit"),
    *("akew", "rippleedits", "ultraeditbench", "wikibigedit", "zsre"),
)


def test_the_world_writes_the_same_files_again(pocket_world: World) -> None:
    there = {
        path.relative_to(_SAMPLES).as_posix(): path.read_bytes()
        for path in _SAMPLES.rglob("*")
        if path.is_file()
    }
    made = {name: content.encode() for name, (content, _) in sample_files(pocket_world).items()}
    assert there == made
    assert sum(map(len, there.values())) < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_read_by_the_code_for_the_published_file(name: str) -> None:
    data = load_cases(f"{name}:{SAMPLE}")
    assert data.name == name
    assert data.source == f"{name}:sample"
    assert not data.skipped
    assert len(data) >= 12
    assert len({case.id for case in data.cases}) == len(data)
    for case in data.cases:
        assert all(edit.subject and edit.subject in edit.prompt for edit in case.edits)
        assert all(edit.target != edit.target_true for edit in case.edits)
        assert case.of("generality")
    assert len(load_cases(f"{name}:{SAMPLE}[:3]")) == 3
    assert Source(f"{name}:{SAMPLE}").path == sample_of(name)


def test_neighbours_share_the_true_answer_and_questions_follow_two_hops(
    pocket_world: World,
) -> None:
    for name in ("counterfact", "rep"):
        for case in load_cases(f"{name}:{SAMPLE}").cases:
            assert len(case.of("locality")) == 5
            assert {probe.target for probe in case.of("locality")} == {case.edits[0].target_true}
    labels = {entity.label for entity in pocket_world.entities.values()}
    for case in load_cases(f"mquake:{SAMPLE}").cases:
        assert len(case.of("generality")) == 3
        for probe in case.of("generality"):
            (hop,) = probe.hops
            assert (hop.target, hop.subject) == (probe.target, case.edits[0].target)
            assert probe.target in labels
            assert probe.target != case.meta["answer"]


def test_no_head_is_one_that_shipped_networks_were_trained_on(pocket_world: World) -> None:
    split = {
        pocket_world.entities[head].label: part for head, part in pocket_world.split_of.items()
    }
    for name in NAMES:
        for case in load_cases(f"{name}:{SAMPLE}").cases:
            for edit in case.edits:
                assert split[str(edit.subject)] != "train"


def test_the_sample_of_edits() -> None:
    edits = load_edits(f"jsonl:{SAMPLE}")
    cases = load_cases(f"jsonl:{SAMPLE}").cases
    assert edits == [edit for case in cases for edit in case.edits]


def test_what_has_a_sample_is_listed() -> None:
    listed = {row["name"]: row["sample"] for row in rows_of(What.datasets)}
    assert set(listed) == set(datasets.entries)
    assert {name: found for name, found in listed.items() if found} == {
        name: f"{name}:sample" for name in NAMES
    }
    with pytest.raises(ConfigError, match=r"world has no sample\n.*zsre:sample"):
        load_cases("world:sample")


def test_a_folder_of_that_name_is_read_when_it_is_written_as_a_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / SAMPLE).write_bytes((_SAMPLES / "zsre.json").read_bytes())
    assert load_cases(f"zsre:./{SAMPLE}").source == SAMPLE
    assert load_cases(f"zsre:{SAMPLE}").source == "zsre:sample"


def test_pocket_knows_the_facts() -> None:
    """Before any edit pocket gives the true answers, in the words of all but zsRE's questions."""
    pocket = errata.load("pocket")
    for name in ("counterfact", "rep", "jsonl", "mquake"):
        facts = load_facts(f"{name}:{SAMPLE}", seed=None).facts
        scores = pocket.score([pocket.row(fact.prompt, fact.target) for fact in facts])
        right = sum(not any(score.ranks) for score in scores)
        assert right >= 0.9 * len(facts), (name, right, len(facts))
