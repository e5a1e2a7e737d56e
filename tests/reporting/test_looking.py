"""Figures that look into runs: their numbers against what the editor itself says, and bad runs."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata.errors import ConfigError, RunError
from errata.reporting import figures
from errata.reporting.collect import collect
from errata.reporting.figures.gates import gini
from errata.reporting.figures.pruning import jensen_shannon
from errata.reporting.figures.relations import lighter
from errata.reporting.reopened import reopened
from errata.store.runs import load_run
from tests.reporting.samples import write_run

CLOSE = 2e-3
"""CSV has four digits."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the shipped IBKE on the twelve records that ship with errata."""
    folder = tmp_path_factory.mktemp("looking") / "run"
    lm = errata.load("pocket")
    cases = errata.load_cases("uniedit:sample")
    errata.evaluate(lm, "ibke", cases, out=folder, details=True, bootstrap=0)
    return folder


def numbers(name: str, folder: Path, **settings: Any) -> tuple[list[dict[str, str]], Any]:
    made = figures.draw(name, folder, **settings)
    return list(csv.DictReader(io.StringIO(made.csv()))), made


def test_a_run_says_how_its_data_are_read(run: Path) -> None:
    told = load_run(run).config["run"]["data"]
    assert told == {"spec": "uniedit:sample", "split": None, "options": {}}


def test_gates_are_the_editor_s_own(run: Path) -> None:
    rows, made = numbers("gates", run)
    (again,) = reopened(collect([run]).cells)
    assert [case.id for case in again.cases] == [r["id"] for r in load_run(run).records]
    edits = [case.edits[0] for case in again.cases]
    own = again.editor.gates(again.lm, edits)  # pyright: ignore[reportAttributeAccessIssue]
    shown = {row["case"] for row in rows}
    assert len(shown) == 3
    paths = list(own[0].by_matrix)
    for case, found in zip(again.cases, own, strict=True):
        for block, path in zip(("3", "4", "5"), paths, strict=True):
            mine = [r for r in rows if (r["case"], r["matrix"]) == (case.id, block)]
            if case.id in shown:
                wanted = [g for g in found.by_matrix[path].tolist() if not math.isnan(g)]
                assert [float(r["gate"]) for r in mine] == pytest.approx(wanted, abs=1e-4)
    told = list(csv.DictReader(io.StringIO(made.tables()["gates-gini.csv"])))
    assert [(row["matrix"], row["edits"]) for row in told] == [
        ("3", "12"),
        ("4", "12"),
        ("5", "12"),
    ]
    each = [gini([g for g in one.by_matrix[paths[0]].tolist() if g == g]) for one in own]
    assert float(told[0]["gini"]) == pytest.approx(sum(each) / 12, abs=1e-4)


def test_gini_is_the_mean_difference_of_pairs() -> None:
    for values in ([0.2, 0.9, 0.4, 0.4], [1.0, 1.0], [0.0, 0.0, 3.0]):
        pairs = [abs(a - b) for a, b in itertools.product(values, repeat=2)]
        mean = sum(values) / len(values)
        assert gini(values) == pytest.approx(sum(pairs) / len(pairs) / (2 * mean))
    assert gini([0.0, 0.0]) == 0.0


def test_pruning_begins_at_the_edit_and_ends_at_the_unedited_model(run: Path) -> None:
    rows, _ = numbers("pruning", run)
    at = {(r["pruned"], r["kind"], r["number"]): float(r["value"]) for r in rows}
    taken = [
        record
        for record in load_run(run).records
        if all(set(q["rank"]) == {1} for q in record["questions"] if q["kind"] == "reliability")
    ]
    assert {int(r["edits"]) for r in rows} == {len(taken)}
    probabilities = [
        sum(q["probability"]) / len(q["probability"])
        for record in taken
        for q in record["questions"]
        if q["kind"] == "reliability"
    ]
    wanted = sum(probabilities) / len(probabilities)
    assert at["0.0000", "reliability", "confidence"] == pytest.approx(wanted, abs=CLOSE)
    assert at["0.0000", "reliability", "rank"] == 1.0
    assert at["1.0000", "locality", "similarity"] == pytest.approx(1.0, abs=1e-6)
    lm = errata.load("pocket")
    by_id = {case.id: case for case in errata.load_cases("uniedit:sample").cases}
    scores = lm.score([lm.row_of(by_id[record["id"]].edits[0]) for record in taken])
    chances = [sum(map(math.exp, s.logprobs)) / len(s.logprobs) for s in scores]
    plain = sum(chances) / len(chances)
    assert at["1.0000", "reliability", "confidence"] == pytest.approx(plain, abs=CLOSE)
    assert at["0.0000", "reliability", "confidence"] > at["1.0000", "reliability", "confidence"]


def test_jensen_shannon_is_the_entropy_of_the_middle_less_the_mean_entropy() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0], [0.7, 0.2, 0.1]]), torch.tensor([[0.0, 0.0, 1.0]] * 2)

    def entropy(one: torch.Tensor) -> torch.Tensor:
        return -torch.special.xlogy(one, one).sum(-1) / math.log(2)

    wanted = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert torch.allclose(jensen_shannon(p.log(), q.log()), wanted, atol=1e-6)
    assert jensen_shannon(p.log(), p.log()).tolist() == [0.0, 0.0]
    assert float(jensen_shannon(p.log(), q.log())[0]) == pytest.approx(1.0)


def test_answers_are_the_most_probable_tokens(run: Path) -> None:
    rows, made = numbers("answers", run, limit=2)
    assert [name for name, _ in itertools.groupby(row["question"] for row in rows[:9])] == [
        "G1", "G2", "L1",
    ]  # fmt: skip
    lm = errata.load("pocket")
    by_id = {case.id: case for case in errata.load_cases("uniedit:sample").cases}
    for row in rows:
        probe = next(p for p in by_id[row["case"]].probes if p.prompt == row["asked"])
        if row["editor"] == "unedited":
            text, chance = lm.top([probe])[0][int(row["place"]) - 1]
            assert (row["answer"], float(row["probability"])) == (
                text.strip(),
                pytest.approx(chance, abs=1e-4),
            )
    pytest.importorskip("matplotlib")
    assert made.pictures()["png"].startswith(b"\x89PNG")


def test_relations_part_as_the_arithmetic_says() -> None:
    pytest.importorskip("sklearn")
    import numpy as np

    from errata.reporting.figures.relations import _silhouettes

    generator = np.random.default_rng(1)
    latents = generator.normal(size=(24, 5)) + np.repeat(np.eye(5)[:3], 8, 0) * 2
    relations = [name for name in "abc" for _ in range(8)]
    found = _silhouettes(latents, latents, latents[:, :2], relations, 0)
    apart = np.linalg.norm(latents[:, None] - latents[None], axis=-1)
    values = []
    for i, own in enumerate(relations):
        means = {
            other: np.mean([apart[i, j] for j, r in enumerate(relations) if r == other and j != i])
            for other in "abc"
        }
        a, b = means[own], min(v for k, v in means.items() if k != own)
        values.append((b - a) / max(a, b))
    assert found["latents"] == (pytest.approx(float(np.mean(values))), 24, 3)
    assert abs(found["latents, relations shuffled"][0]) < found["latents"][0]


def test_too_few_edits_of_a_relation(run: Path) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(RunError, match="no two relations with 5 edits"):
        figures.draw("relations", run)


def test_the_less_sure_the_lighter() -> None:
    assert lighter("#000000", 1.0) == (0.0, 0.0, 0.0)
    assert lighter("#000000", 0.5)[0] < lighter("#000000", 0.0)[0] < 1.0


# ---------------------------------------------------------------------- bad input


def altered(run: Path, to: Path, change: Any) -> Path:
    shutil.copytree(run, to)
    path = to / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")
    return to


def test_runs_that_are_not_what_they_were(run: Path, tmp_path: Path) -> None:
    for name, said, change in (
        ("weights", "of other weights", lambda c: c["model"].update(fingerprint="f" * 64)),
        ("networks", "of other networks", lambda c: c["editor"].update(networks="0" * 16)),
        ("older", "lacks run.data.spec", lambda c: c["run"].pop("data")),
        ("data", "is not what", lambda c: c["run"].update(data={"spec": "zsre:sample"})),
    ):
        folder = altered(run, tmp_path / name, change)
        with pytest.raises(RunError, match=said) as failed:
            figures.draw("gates", folder)
        assert "errata eval --editor ibke" in str(failed.value.hint)


def test_runs_without_what_a_figure_looks_into(run: Path, tmp_path: Path) -> None:
    plain = write_run(tmp_path / "rome", {"reliability": [1.0], "generality": [1.0]})
    for name, said, command in (
        ("gates", "latents and gates", "ibke-inside-pocket"),
        ("pruning", "latents and gates", "ibke-inside-pocket"),
        ("keys", "host with REP", "rep-pocket"),
        ("residuals", "spreads its residual", "blue-pocket"),
        ("trajectory", "lacks trajectory", "--regime sequential"),
    ):
        with pytest.raises(RunError, match=said) as failed:
            figures.draw(name, plain)
        assert command in str(failed.value.hint)
    other = write_run(tmp_path / "other", {"reliability": [1.0]}, data="zsre")
    with pytest.raises(RunError, match="several models, data sets or seeds"):
        figures.draw("answers", [run, other])


def test_settings_that_a_figure_does_not_take(run: Path) -> None:
    with pytest.raises(ConfigError, match="scatter takes no limit"):
        figures.draw("scatter", run, limit=3)
    with pytest.raises(ConfigError, match="gates takes no seeds"):
        figures.draw("gates", run, seeds=3)
    with pytest.raises(ConfigError, match="limit is 0"):
        figures.draw("gates", run, limit=0)


# ---------------------------------------------------------------------- sequences


def test_trajectories_are_means_over_sequences(tmp_path: Path) -> None:
    def points(drift: float) -> list[dict[str, Any]]:
        return [
            {"step": 0, "edits": 0, "perplexity": 2.0, "general": {"world/acc": 1.0}},
            {"step": 1, "edits": 10, "perplexity": 4.0, "general": {"world/acc": 0.5},
             "drift": {"a": {"relative": drift}, "b": {"relative": 0.3}},
             "recall": {"score": 0.9, "cases": 10}},
        ]  # fmt: skip

    folders = [
        write_run(tmp_path / str(seed), {"reliability": [1.0]}, seed=seed, trajectory=points(drift))
        for seed, drift in enumerate((0.1, 0.2))
    ]
    rows = list(csv.DictReader(io.StringIO(figures.draw("trajectory", folders).csv())))
    found = {(r["number"], r["edits"]): (r["value"], r["sequences"]) for r in rows}
    assert found["drift", "10"] == ("0.2250", "2")
    assert found["world acc", "10"] == ("0.5000", "2")
    assert found["perplexity", "0"] == ("2.0000", "2")
    assert found["recall", "10"] == ("0.9000", "2")
