"""The built-in world as a data set, and the files it writes in UniEdit's schema."""

from __future__ import annotations

import pytest

from errata.data import load_cases
from errata.errors import ConfigError

OPTIONS = {"scale": "test"}


@pytest.fixture(scope="module")
def benchmark():
    from errata.world import benchmark, build_world

    return benchmark(build_world("test", 0), "test")


def test_the_world_is_a_data_set(benchmark):
    loaded = load_cases("world", options=OPTIONS)
    assert len(loaded) == sum(map(len, benchmark.values()))
    assert loaded.split == "test"
    assert loaded.version == load_cases("world", options=OPTIONS, limit=3).version
    assert loaded.version != load_cases("world", options=OPTIONS | {"seed": 1}).version
    for case in loaded.cases:
        (edit,) = case.edits
        assert edit.subject is not None
        assert edit.subject in edit.prompt
        assert len(case.of("generality")) == 1
        assert len(case.of("locality")) <= 1


def test_every_criterion_occurs():
    cases = load_cases("world", "train", options=OPTIONS).cases
    found = {kind: set() for kind in ("generality", "locality")}
    for case in cases:
        for probe in case.probes:
            found[probe.kind].update(probe.criteria)
    assert found["generality"] == {"Rep", "MH", "RR", "SER", "SA", "OA"}
    assert found["locality"] == {"MH", "SER", "SS", "RS", "OS", "1-NF", "W/O"}


def test_its_files_are_read_like_those_of_uniedit(tmp_path):
    from errata.world import build_world, write_benchmark

    counts = write_benchmark(build_world("test", 0), tmp_path)
    for split, count in counts.items():
        made = load_cases("world", split, options=OPTIONS)
        assert len(made) == count
        for name in ("uniedit", "world"):
            read = load_cases(f"{name}:{tmp_path}", split)
            assert (read.split, read.notes) == (split, made.notes)
            assert sorted(read.cases, key=lambda c: c.id) == sorted(made.cases, key=lambda c: c.id)


def test_unknown_splits_and_options():
    with pytest.raises(ConfigError, match=r"no split 'valid'\nDid you mean 'val'"):
        load_cases("world", "valid")
    with pytest.raises(ConfigError, match="unknown setting 'scal'"):
        load_cases("world", options={"scal": "test"})
