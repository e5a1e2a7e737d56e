"""Editors by name, what is known of them before they are imported, and settings that come along."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from errata.editors import FACTS, EditorRegistry, editors, get_editor
from errata.registry import Registry
from errata.sources import Sources
from errata.strategies import strategies

OWN = [name for name, entry in editors.all.items() if entry.is_own]


def test_presets_come_with_their_model_and_the_user_wins() -> None:
    found = get_editor("ft", model="pocket").config.model_dump()
    plain = get_editor("ft").config.model_dump()
    assert found["lr"] == get_editor("ft", as_published="pocket").config.model_dump()["lr"]
    assert found != plain
    assert get_editor("ft", overrides=["lr=0.25"], model="pocket").config.model_dump()["lr"] == 0.25
    assert get_editor("ft", model="gpt2-xl").config.model_dump() == plain
    assert get_editor("none", model="pocket").config.model_dump() == {"conflicts": "refuse"}


def test_presets_are_not_published_and_pairs_have_theirs() -> None:
    for name in OWN:
        cls = editors.load(name)
        assert "pocket" not in cls.published, name
    host, pair = editors.load("rome").presets["pocket"], editors.load("rome+rep").presets["pocket"]
    assert host.items() <= pair.items()
    assert pair.keys() - host.keys()


@pytest.mark.parametrize("name", OWN)
def test_facts_are_those_of_the_class(name: str) -> None:
    """Of pairs too, which are made by another function from the classes."""
    entry, cls = editors.entry(name), editors.load(name)
    assert entry.facts == {fact: getattr(cls, fact) for fact in FACTS}


@pytest.mark.parametrize("name", OWN)
def test_what_a_registry_notes_in_an_editor_hides_nothing_of_it(name: str) -> None:
    editor = get_editor(name, model="pocket")
    hidden = [attr for attr in vars(editor) if callable(getattr(type(editor), attr, None))]
    assert not hidden


def test_strategies_inherit_facts() -> None:
    for name, entry in strategies.entries.items():
        if not entry.is_own:
            continue
        cls = strategies.load(name)
        for fact, value in entry.facts.items():
            assert value == getattr(cls, fact), (name, fact)


PLUG_IN = {
    "base.py": """
        raise RuntimeError("imported")
        import errata
        from .told import paper as unused
        class Common(errata.Editor):
            paper = "Common, 2026"
            needs = ("subject",)
            batch = "in turn"
            exports = ("lora",)
        class Mixed:
            exports = ()
        """,
    "__init__.py": """
        raise RuntimeError("imported")
        from .method import Nudge as Renamed
        """,
    "method.py": """
        raise RuntimeError("imported")
        from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar
        from .base import Common as Shared
        from third_party_plug_in import base
        class Nudge(base.Mixed, Shared):
            '''Nudges.

            More.
            '''
            name: ClassVar[str] = "nudge"
            title = "Nudge"
            batch = "mem" + "ory"
        class Loop(Loop):
            name = "loop"
        """,
    "told.py": "def broken(:\n",
}


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "third_party_plug_in"
    package.mkdir()
    for name, text in PLUG_IN.items():
        lines = [line.removeprefix(" " * 8) for line in text.splitlines()]
        (package / name).write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def read(monkeypatch: pytest.MonkeyPatch, *values: str) -> EditorRegistry:
    points = [
        metadata.EntryPoint(f"plug{i}", value, "errata.editors") for i, value in enumerate(values)
    ]
    monkeypatch.setattr(
        metadata, "entry_points", lambda group: [p for p in points if p.group == group]
    )
    return EditorRegistry(
        "editor", "errata.editors", editors.folder, "errata.editors",
        home="editor", base="errata.editors.base:Editor", stated=FACTS,
    )  # fmt: skip


def test_an_installed_editor_is_read_and_not_imported(
    plug_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = read(monkeypatch, "third_party_plug_in:Renamed")
    entry = registry.entry("plug0")
    assert entry.summary == "Nudges."
    assert not entry.is_own
    assert entry.target == "third_party_plug_in:Renamed"
    assert entry.facts == {
        "name": "nudge",
        "title": "Nudge",
        "paper": "Common, 2026",
        "needs": ("subject",),
        "weights": True,
        "sequence": "adds",
        "sequential": True,
        "exports": (),
    }  # its batch is no literal: only the class knows
    assert "third_party_plug_in" not in sys.modules


def test_what_cannot_be_read_has_the_facts_of_every_editor(
    plug_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = read(
        monkeypatch, "no_such_module:X", "third_party_plug_in.told:X", "third_party_plug_in:X",
        "third_party_plug_in.base.deeper:X", "sys:X",
    )  # fmt: skip
    for number in range(5):
        entry = registry.entry(f"plug{number}")
        assert entry.facts["needs"] == ()
        assert entry.facts["exports"] == ("lora", "merged")
        assert entry.summary.startswith("from ")
    assert registry.pairs.keys() == editors.pairs.keys()


def test_lineages_are_python_s() -> None:
    """Also of diamonds; a class that inherits from itself ends."""
    sources = Sources()
    for module, name in [
        ("errata.strategies.rep.strategy", "Rep"),
        ("errata.editors.mend", "Mend"),
        ("errata.editors.pmet", "Pmet"),
        ("errata.data.zsre", "Zsre"),
    ]:
        source = sources.find(module, name)
        if source is None:
            (source,) = [one for one in sources.classes(module) if "name" in one.own()]
        loaded = getattr(__import__(module, fromlist=["x"]), source.node.name)
        named = [f"{one.module}:{one.node.name}" for one in sources.lineage(source)]
        python = [f"{c.__module__}:{c.__qualname__}" for c in loaded.__mro__]
        assert named == [name for name in python if name.startswith("errata.")]


def test_a_class_that_inherits_from_itself_ends(plug_in: Path) -> None:
    sources = Sources()
    source = sources.find("third_party_plug_in.method", "Loop")
    assert source is not None
    assert sources.facts(source) == {"name": "loop"}


def test_pairs_are_listed_without_torch() -> None:
    code = (
        "import sys; from errata.editors import editors\n"
        "editors.pairs; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_registry_without_plug_ins_lists_its_folder(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("class A:\n    '''First.'''\n    name = 'a'\n    n = 1\n")
    registry = Registry("thing", "things", tmp_path, "none", stated=("name", "n"))
    assert registry.entry("a").facts == {"name": "a", "n": 1}
    assert registry.entry("a").target == "things.one:A"
