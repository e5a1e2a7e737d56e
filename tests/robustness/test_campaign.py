"""A small sample of the campaign with every `make test`; all of it by `make campaign`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.robustness import batches, faults, fuzz, kills, web_kill
from tests.robustness.materials import Materials

SAMPLE = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Materials]:
    root = tmp_path_factory.mktemp("campaign")
    with pytest.MonkeyPatch.context() as patched, fuzz.loading_once():
        patched.setenv("ERRATA_CACHE", str(root / "cache"))
        patched.setenv("HF_HUB_OFFLINE", "1")
        patched.setenv("HF_DATASETS_OFFLINE", "1")
        yield Materials.make(root / "made", ("rome", "ft", "grace"))


@pytest.mark.filterwarnings("ignore")  # of what is broken, others may warn as they like
def test_a_sample_of_broken_inputs(made: Materials) -> None:
    found = fuzz.fuzz(made, SAMPLE, seed=4, told=print)
    assert found.total == SAMPLE
    assert not found.faults
    ended = {name.split()[1] for name in found.inputs}
    assert {"0", "1"} <= ended  # some were right after all, and most were refused


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it starts processes, which a busy machine does slowly
def test_a_sample_of_kills(made: Materials) -> None:
    assert not kills.campaign(made, range(2), 4, print, ("edit --force",)).faults


def test_a_limit_on_files_costs_nothing(made: Materials, tmp_path: Path) -> None:
    assert faults.file_limit_edit(made, tmp_path)


@pytest.mark.web
@pytest.mark.timeout(1800)
def test_a_page_that_is_killed_in_the_middle_starts_again(made: Materials, tmp_path: Path) -> None:
    if web_kill.interpreter() is None:
        pytest.skip("Gradio is not installed: make test-web")
    assert faults.web_killed(made, tmp_path)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")
def test_the_campaign(made: Materials) -> None:
    lost = []

    def told(tried: fuzz.Tried, again: tuple[str, ...]) -> None:
        lost.extend([tried] * (tried.fault is not None))

    batches.campaign(made, range(10_000), 0, told)
    assert not lost
    assert not kills.campaign(made, range(119), 0, print).faults
    assert faults.campaign(made, print)
