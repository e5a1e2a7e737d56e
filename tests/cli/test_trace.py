"""`errata trace`: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.cli import _heatmap
from errata.tracing import trace as tracing
from errata.tracing.effects import ROLES, Trace, TraceSettings
from tests.cli.conftest import Errata
from tests.tiny_models import TINY, tiny_tokenizer

QUICK = ("--samples", "2", "--limit", "2")


@pytest.fixture(scope="session")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GPT-J whose head has a bias towards one token: it knows every fact with that answer."""
    folder = tmp_path_factory.mktemp("knowing")
    model, tokenizer = TINY["gptj"](), tiny_tokenizer()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
        model.get_output_embeddings().bias[tokenizer(" Paris")["input_ids"][0]] += 12
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def facts(here: Path) -> Path:
    tokenizer = tiny_tokenizer()
    answer = tokenizer.decode(tokenizer(" Paris")["input_ids"][:1])
    path = here / "facts.json"
    records = [
        {"subject": subject, "template": template, "attribute": answer}
        for subject, template in (
            ("France", "The capital of {} is"),
            ("Danielle", "{} lives in"),
            ("Berlin", "Who is the mayor of {}? It is"),
        )
    ]
    records.append({"subject": "Anna", "prompt": "Anna lives in", "attribute": "Q"})
    path.write_text(json.dumps(records))
    return path


def test_a_heat_map_and_a_choice(errata: Errata, knowing: str, facts: Path) -> None:
    done = errata("trace", knowing, "--data", facts, *QUICK)
    assert done.code == 0
    for role in ROLES:
        assert done.stdout.count(f"\n {role} ") == 3
    assert "2 facts of" in done.stdout
    assert "Choice: block" in done.stdout
    assert "\x1b[" not in done.stdout
    found = errata("trace", knowing, "--data", facts, *QUICK, "--json").json
    assert set(found["effects"]) == {"hidden", "ffn", "attn"}
    assert len(found["effects"]["ffn"]) == len(ROLES)
    assert found["blocks"] == len(found["effects"]["ffn"][0]) == 3
    assert 0.5 < found["clean"] < 1
    assert 0.5 < found["corrupted"] < 1
    assert found["choice"]["layer"] in found["choice"]["layers"]
    assert found["settings"] == {"samples": 2, "noise": 3.0, "window": "auto", "seed": 0}
    doctor = errata("doctor", knowing, "--json").json
    (said,) = (check["found"] for check in doctor["checks"] if check["what"] == "causal trace")
    assert said.startswith(f"block {found['choice']['layer']}, traced on 2 facts")


def test_one_kind_and_a_second_time(
    errata: Errata, knowing: str, facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = errata("trace", knowing, "--data", facts, *QUICK, "--kind", "hidden", "--json").json
    assert set(first["effects"]) == {"hidden"}
    assert first["choice"] is None

    def never(*args: object) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(tracing, "_effects", never)
    words = ("trace", knowing, "--data", facts, *QUICK, "--kind", "hidden")
    assert errata(*words, "--json").json["effects"] == first["effects"]
    assert "needs --kind ffn" in errata(*words).stdout


def test_pictures(errata: Errata, knowing: str, facts: Path, here: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ("trace", knowing, "--data", facts, *QUICK)
    assert errata(*words, "--out", "map.png").code == 0
    assert (here / "map.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = errata(*words, "--out", "both", "--json").json
    assert sorted(path.name for path in (here / "both").iterdir()) == ["trace.json", "trace.png"]
    kept = json.loads((here / "both" / "trace.json").read_text())
    assert kept["effects"] == found["effects"]
    again = errata(*words, "--out", "map.png")
    assert again.code == 1
    assert "--force" in again.stderr
    assert errata(*words, "--out", "map.png", "--force").code == 0


def test_pictures_without_matplotlib(
    errata: Errata, knowing: str, facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = importlib.import_module

    def absent(name: str, *more: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return given(name, *more)

    monkeypatch.setattr(_heatmap.importlib, "import_module", absent)
    done = errata("trace", knowing, "--data", facts, *QUICK, "--out", "map.png")
    assert done.code == 1
    assert "errata[report]" in done.stderr
    assert done.stdout == ""


def test_deep_models_are_drawn_in_shades() -> None:
    effects = torch.zeros(2, len(ROLES), 48, dtype=torch.float64)
    effects[:, 2, 17] = 0.4
    effects[:, 5, 40] = 0.2
    effects[:, 1] = torch.nan
    ones = torch.ones(2, dtype=torch.float64)
    found = Trace("m", "f", "d", 2, 0.1, 10, TraceSettings(), ones, ones, {"ffn": effects}, "x")
    table = _heatmap.table_of(found, "ffn")
    assert "10 neighbouring blocks" in str(table.title)
    strips = [cell.plain if hasattr(cell, "plain") else cell for cell in table.columns[1]._cells]
    assert strips[2] == " " * 17 + "█" + " " * 30
    assert strips[5][40] == "▒"
    assert strips[1] == "–"
    assert list(table.columns[3]._cells)[2] == "17"
    assert list(table.columns[2]._cells)[2] == "40.0"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--data", "cuonterfact"], 2, "'counterfact'"),
        (["--data", "world", "--split", "tset"], 2, "'test'"),
        (["--data", "absent.json"], 2, "absent.json"),
        (["--data", "known_1000:absent.json"], 1, "cannot read"),
        (["--data", "bad.json"], 1, "record 0: field 'subject' is missing"),
        (["--data", "apart.json"], 1, "holds the subject 'Spain'"),
        (["--data", "list.json"], 1, "expected a list of records"),
        (["--data", "empty.json"], 1, "holds no fact"),
        (["--data", "facts.json", "--noise", "0"], 2, "noise"),
        (["--data", "facts.json", "--kind", "mlp"], 2, "ffn"),
        (["--data", "facts.json", "--out", "map.jpeg"], 2, ".png"),
        (["--data", "unknown.json"], 1, "answers none of 1 facts"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes(
    errata: Errata, knowing: str, facts: Path, here: Path, words: list[str], code: int, said: str
) -> None:
    france = {"subject": "France", "prompt": "The capital of France is", "attribute": "Q"}
    files: dict[str, Any] = {
        "bad.json": [{"prompt": "x"}],
        "apart.json": [{**france, "subject": "Spain"}],
        "list.json": {"a": 1},
        "empty.json": [],
        "unknown.json": [france],
    }
    for name, content in files.items():
        (here / name).write_text(json.dumps(content))
    done = errata("trace", knowing, *words, *QUICK)
    assert done.code == code, done.stderr
    assert said in done.stderr
    assert done.stdout == ""


def test_an_interrupt_says_how_to_go_on(
    errata: Errata, knowing: str, facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tracing, "_effects", stop)
    done = errata("trace", knowing, "--data", facts, *QUICK)
    assert done.code == 130
    assert "goes on" in done.stderr


def test_published_facts(shared: Path) -> None:
    from errata.data._facts import load_facts

    known = load_facts(f"known_1000:{shared / 'data' / 'facts' / 'known_1000.json'}", seed=None)
    assert len(known.facts) == 1209
    first = known.facts[0]
    assert (first.prompt, first.subject, first.target) == (
        "Vinson Massif is located in the continent of", "Vinson Massif", "Antarctica"
    )  # fmt: skip
    path = shared / "data" / "counterfact" / "counterfact-val.json"
    facts = load_facts(f"counterfact:{path}", seed=None).facts
    assert facts[0].target == "BBC"
    assert load_facts(path, seed=None).facts == facts  # known by its fields


def test_facts_of_the_world_are_those_of_one_split() -> None:
    from errata.data._facts import load_facts
    from errata.world import build_world

    world = build_world()
    found = load_facts("world").facts
    train = sum(world.split_of[fact.head] == "train" for fact in world.facts)
    assert len(found) == train
    for edit in found[:50]:
        fact = world.facts[int(edit.id or -1)]
        assert world.split_of[fact.head] == "train"
        assert edit.target == world.entities[fact.tail].label
        assert edit.subject == world.entities[fact.head].label
        assert edit.subject in edit.prompt
    assert load_facts("world").facts == found
    assert load_facts("world", seed=1).facts != found
