"""Every page can be reached, and every link of every page leads somewhere, here and in the site."""

from __future__ import annotations

import importlib
import os.path
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import errata
from tests.docs.scripts import DOCS, ROOT, script

dialect, notebooks, pages = script("dialect"), script("notebooks"), script("pages")

SOURCES = [
    *(path.relative_to(ROOT).as_posix() for path in pages.pages()),
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md",
]  # fmt: skip


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without what it names in Python."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def navigation() -> Iterator[str]:
    def walk(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for inner in entry.values() if isinstance(entry, dict) else entry:
                yield from walk(inner)

    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    yield from walk(yaml.load(text, Loader)["nav"])


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip()
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


@cache
def anchors(path: Path) -> set[str]:
    seen: Counter[str] = Counter()
    made = set()
    fence = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        opened = dialect.FENCE.match(line)
        if fence or opened:
            fence = "" if line.strip() == fence else fence or opened[1]
            continue
        if dialect.HEADING.match(line):
            name = slug(line.lstrip("#").strip())
            made.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return made


@pytest.mark.parametrize("source", SOURCES)
def test_links_lead_somewhere(source: str) -> None:
    path = ROOT / source
    links: list[tuple[str, str]] = []

    def note(piece: str) -> str:
        links.extend((m[1], m[2] or "") for m in pages.LINK.finditer(piece))
        return piece

    notebook = path.suffix == ".ipynb"
    text = notebooks.page(path)[0] if notebook else path.read_text(encoding="utf-8")
    dialect.outside_code(text, note)
    for target, anchor in links:
        if ":" in target or (notebook and target.endswith(".png")):
            continue
        to = Path(os.path.normpath(path.parent / target)) if target else path
        assert to.exists(), f"{source} links to {target}, which is not there"
        assert to.is_relative_to(ROOT), target
        if anchor:
            assert to.suffix == ".md", f"{source}: an anchor into {target}"
            known = anchors(to)
            assert anchor[1:] in known, f"{source}: {target} has no {anchor}; {sorted(known)}"


def test_every_page_is_in_the_navigation() -> None:
    """A page that is added is entered into `nav` of mkdocs.yml, under its guide or chapter."""
    listed = list(navigation())
    own = {path.relative_to(DOCS).with_suffix(".md").as_posix() for path in pages.pages()}
    made = {*pages.REFERENCE, *pages.WHOLE.values()}
    assert len(listed) == len(set(listed))
    assert own | made == set(listed)


def test_every_public_name_has_its_place_in_the_reference() -> None:
    listed = Counter(name for group in pages.REFERENCE.values() for name in group.names)
    assert not [name for name, times in listed.items() if times > 1]
    assert set(errata.__all__) - {"__version__"} <= set(listed)


@pytest.mark.parametrize(
    "name", sorted(name for group in pages.REFERENCE.values() for name in group.names)
)
def test_names_of_the_reference_exist(name: str) -> None:
    home, _, last = f"errata.{name}".rpartition(".")
    module = importlib.import_module(home)
    found = getattr(module, last, None) or importlib.import_module(f"{home}.{last}")
    assert found.__doc__


def test_links_are_turned_to_pages_of_the_site() -> None:
    text = (
        "[a](plugins.md#entry-points) [b](../CHANGELOG.md) [c](notebooks/first-edit.ipynb) "
        "[d](../README.md) [e](https://example.org) [f](#here) `[g](../README.md)`"
    )
    assert pages.relinked(text, "api.md") == (
        "[a](plugins.md#entry-points) [b](changelog.md) [c](notebooks/first-edit.md) "
        "[d](index.md) [e](https://example.org) [f](#here) `[g](../README.md)`"
    )
    assert pages.relinked("[a](docs/api.md)", "contributing.md") == "[a](api.md)"
    assert pages.relinked("[a](../api.md)", "notebooks/first-edit.md") == "[a](../api.md)"
    plugin = pages.relinked("[a](../examples/plugin)", "plugins.md")
    assert plugin == "[a](files/examples/plugin.md)"
    assert "class Nudge(Editor)" in pages.generated()["files/examples/plugin.md"]


def test_public_names_lead_to_their_docstrings() -> None:
    text = "Use `errata.edit(lm, …)`.\n# `errata.edit`\n```\n`errata.edit`\n```\n`errata.nothing`"
    assert pages.named(text) == (
        "Use [`errata.edit(lm, …)`][errata.edit].\n"
        "# `errata.edit`\n```\n`errata.edit`\n```\n`errata.nothing`"
    )


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ('<script src="https://unpkg.com/x"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example/x">', True),
        ('<img alt="x" src=http://example.org/x.png>', True),
        ("a { background: url('https://example.org/x.png') }", True),
        ('@import "https://example.org/x.css";', True),
        ('<a href="https://arxiv.org/abs/2202.05262">2202.05262</a>', False),
        ('<script src="assets/x.js"></script><img src="data:image/png;base64,x">', False),
    ],
)
def test_what_would_need_the_network_is_found(text: str, loads: bool) -> None:
    assert bool(pages.LOADED.search(text)) is loads
