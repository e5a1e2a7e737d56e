from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.locate.samples import build
from tests.nets.samples import SMALL, briefly_trained, untrained

from errata.case import Case, Edit, Probe
from errata.data import save_cases
from errata.editors import base_joint, editors, get_editor
from errata.editors.base import Editor
from errata.editors.base_joint import JointEditor, Write
from errata.editors.base_networks import NetworkEditor
from errata.locate.contexts import Contexts
from errata.locate.values import Values
from errata.model.lm import LM
from errata.nets.update import EditNetwork
from errata.patch import Change

QUICK: dict[str, Any] = {
    "contexts": ("{}", "I think so. {}"),
    "steps": 6,
    "lr": 0.05,
    "weight_decay": 0.0,  # would outweigh the likelihood on a model this small
    "layer": 1,
    "layers": (1,),
    "moments_samples": 50,
    "ridge": 1e-2,  # fifty short texts do not fill the space of keys
    "memory_words": 0,
    "nas_facts": 6,
    "keep_texts": 3,
    "block_steps": 4,
    "are_window": 2,
}
"""Small settings, given to every editor that has a setting of the name."""


@pytest.fixture(scope="session")
def tiny() -> Callable[..., LM]:
    return build


@pytest.fixture(scope="session")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "texts.json"
    towns = ["Paris", "Rome", "Berlin", "Oslo", "Lima"]
    texts = [f"The mayor of {a} lives in {b} and works there." for a in towns for b in towns]
    path.write_text(json.dumps(texts))
    return str(path)


@pytest.fixture(scope="session")
def demos_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Cases that demonstrations are made of."""
    path = tmp_path_factory.mktemp("demos") / "demos.jsonl"
    cases = [
        Case(
            person,
            (Edit(f"{person} lives in", town, person),),
            (
                Probe(f"The home of {person} is", town, "generality", "rephrase"),
                Probe(f"The mayor of {town} is", "Anna", "locality", "near"),
            ),
        )
        for person, town in [("Emma", "Lima"), ("Otto", "Oslo"), ("Ida", "Rome"), ("Max", "Bern")]
    ]
    save_cases(path, cases)
    return str(path)


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache_of_its_own(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(cache_folder))


@pytest.fixture(scope="session")
def make(texts_file: str, demos_file: str) -> Callable[..., Editor]:
    """Build an editor by name with small settings; a new editor needs nothing here."""

    def build_editor(name: str, **settings: Any) -> Editor:
        known = editors.load(name).Config.model_fields
        quick = {
            **SMALL,
            **QUICK,
            "moments_text": texts_file,
            "memory_text": texts_file,
            "keep_text": texts_file,
            "key_text": texts_file,
            "demos": demos_file,
            "encoder": "own",
            "host_settings": ("layers=1", "steps=6", "lr=0.05"),
        }
        chosen = {key: value for key, value in quick.items() if key in known}
        editor = get_editor(name, {**chosen, **settings})
        return _with_networks(editor) if isinstance(editor, NetworkEditor) else editor

    return build_editor


_networks: dict[tuple[str, str, str], EditNetwork] = {}


def _with_networks(editor: NetworkEditor) -> NetworkEditor:
    """Let an editor adopt small networks for whatever model it is given.

    They are trained for a few steps on a float64 model, once, and used for its other types too.
    """

    def prepare(lm: LM) -> None:
        kind = lm.name.removeprefix("tiny-")
        key = (editor.name, editor.config.model_dump_json(), kind)
        if key not in _networks:
            _networks[key] = briefly_trained(editor, build(kind))
        made = untrained(editor, lm)
        made.load_state_dict(_networks[key].state_dict())
        editor.adopt(lm, made.requires_grad_(False).eval())

    editor.prepare = prepare
    return editor


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What happens in an edit, in order: a value found or a block written."""
    events: list[tuple[str, Any]] = []
    optimise, change = base_joint.optimise_values, JointEditor.change

    def values(
        lm: LM, edits: Sequence[Edit], contexts: Contexts, layer: int, *more: Any, **named: Any
    ) -> Values:
        found = optimise(lm, edits, contexts, layer, *more, **named)
        events.append(("value", (layer, found)))
        return found

    def write(self: JointEditor, lm: LM, write: Write) -> Change:
        events.append(("write", write))
        return change(self, lm, write)

    monkeypatch.setattr(base_joint, "optimise_values", values)
    monkeypatch.setattr(JointEditor, "change", write)
    return events
