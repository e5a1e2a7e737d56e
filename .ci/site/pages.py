"""The pages of the site that are no file of docs/: where they come from, and where links go.

```
CHANGELOG.md, CONTRIBUTING.md       as they are
docs/notebooks/*.ipynb              one page each
REFERENCE                           docstrings, one page per group of names
any file that a page links to       its text, so that a reader needs no network
```

Standard library only.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import dialect

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

WHOLE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files of the repository that are pages."""

FRONT = "README.md"
"""Front page of the repository; the site has its own."""

LINK = re.compile(r"(?<=\]\()([^()\s#]*)(#[^()\s]*)?(?=\))")


LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*?\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?![^>]*rel=[\"']?canonical)[^>]*?\bhref=[\"']?(?:https?:)?//[^>]*>"
    r"|@import\s+(?:url\()?[\"']?(?:https?:)?//[^;]*|url\([\"']?(?:https?:)?//[^)]*\)",
    re.IGNORECASE,
)
"""What a browser would fetch from elsewhere when it shows a page."""

NAMED = re.compile(r"(?<!\[)`errata\.([A-Za-z_][\w.]*)(?:\([^`]*\))?`")
"""A public name in the text of a page."""


@dataclass(frozen=True)
class Group:
    """A page of the reference: what it is about, and the public names on it."""

    title: str
    about: str
    names: tuple[str, ...]


REFERENCE = {
    "reference/functions.md": Group(
        "Functions",
        "What a session calls. Everything here is a name of `errata`.",
        ("load", "edit", "evaluate", "report", "load_cases", "load_edits", "save_cases",
         "get_editor", "train", "tune", "trace"),
    ),
    "reference/data.md": Group(
        "Edits, probes, cases",
        "What is to become true, and the questions that test it.",
        ("Edit", "Probe", "Case"),
    ),
    "reference/models.md": Group(
        "Models", "A model with its tokenizer, and several patches in one pass.", ("LM", "Stack")
    ),
    "reference/patches.md": Group(
        "Patches",
        "An edit as a value, and what it is made of.",
        ("Patch", "LowRank", "Dense", "Module", "Route", "Context"),
    ),
    "reference/exports.md": Group(
        "Patches in and out",
        "What the methods of a patch call: comparing, taking edits out, folders, other formats.",
        ("patch.compare.compare", "patch.removal.remove", "patch.folder.save",
         "patch.folder.load", "patch.export.to_lora", "patch.export.from_lora",
         "patch.export.to_merged", "patch.gguf_adapter.to_gguf",
         "patch.gguf_adapter.from_gguf"),
    ),
    "reference/settings.md": Group(
        "Settings and errors",
        "What evaluations and trainings can be asked, and what goes wrong.",
        ("Protocol", "TrainConfig", "ErrataError"),
    ),
    "reference/results.md": Group(
        "Results",
        "What the functions return.",
        ("evaluation.result.Result", "reporting.result.Report", "patch.compare.Comparison",
         "training.loop.Trained", "searching.result.Tuned", "tracing.effects.Trace"),
    ),
    "reference/sheets.md": Group(
        "Fact sheets",
        "Corrections under version control.",
        ("sheets.load_sheet", "sheets.new_sheet", "sheets.without_fact", "sheets.difference",
         "sheets.Sheet", "sheets.Fact", "sheets.building.build", "sheets.building.Built",
         "sheets.checking.ask", "sheets.checking.missed"),
    ),
    "reference/plugins.md": Group(
        "For authors of methods",
        "What an editor, a strategy, a data set and a kind of change inherit from, and how a "
        "method reads a model.",
        ("Editor", "EditorConfig", "editors.base.Conflicts", "strategies.base.Strategy",
         "data.Dataset", "data.Opened", "data.Record", "patch.Change", "patch.change_kind",
         "patch.module_kind", "patch.route_kind", "patch.Router", "model.passes.capture",
         "model.passes.Pass"),
    ),
    "reference/locating.md": Group(
        "Locate-then-edit",
        "Keys, target values, moments and solvers, as functions on tensors.",
        ("locate.contexts.get_contexts", "locate.keys.edit_keys", "locate.keys.EditKeys",
         "locate.values.optimise_values", "locate.values.Values", "locate.moments.get_moments",
         "locate.moment_files.Moment", "locate.solve.factor", "locate.solve.Factor",
         "locate.solve.rome", "locate.solve.r_rome", "locate.joint.least_squares",
         "locate.joint.equality", "locate.joint.null_space", "locate.spectrum.get_null_space",
         "locate.spectrum.NullSpace", "locate.memory.KeyMemory"),
    ),
    "reference/testing.md": Group(
        "errata.testing", "", ("testing",)
    ),
}  # fmt: skip


def reference(group: Group) -> str:
    """Return a page of the reference as mkdocstrings reads it."""
    lines = [f"# {group.title}", "", group.about, ""]
    for name in group.names:
        lines += [f"::: errata.{name}", ""]
        if name == "testing":
            lines[-1:] = ["    options:", "      show_root_heading: false", ""]
    return "\n".join(lines)


def pages() -> list[Path]:
    """Return the pages that lie in docs/."""
    return sorted(path for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb"))


def generated() -> dict[str, str]:
    """Return the pages that are made: name -> GitHub's or mkdocstrings' Markdown."""
    made = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in WHOLE.items()}
    made |= {page: reference(group) for page, group in REFERENCE.items()}
    return made | {page: shown(path) for path, page in linked_files().items()}


@cache
def linked_files() -> dict[Path, str]:
    """Return what pages link to outside of docs/, each with the page that shows it."""
    found = {}
    sources = [path for path in pages() if path.suffix == ".md"] + [ROOT / name for name in WHOLE]
    for path in sources:
        for target in links(path.read_text(encoding="utf-8")):
            to = Path(os.path.normpath(path.parent / target))
            own = to.is_relative_to(DOCS) or to == DOCS
            if to.exists() and not own and to.name not in (*WHOLE, FRONT):
                found[to] = f"files/{to.relative_to(ROOT).as_posix()}.md"
    return dict(sorted(found.items()))


def links(text: str) -> Iterator[str]:
    """Yield the files that a page links to, without anchors and the addresses of other sites."""
    found: list[str] = []

    def note(piece: str) -> str:
        found.extend(match[1] for match in LINK.finditer(piece))
        return piece

    dialect.outside_code(text, note)
    yield from (target for target in found if target and ":" not in target)


def named(text: str) -> str:
    """Return a page whose public names lead to their docstrings."""
    public = {name for group in REFERENCE.values() for name in group.names}
    lines, fenced = [], False
    for line in text.split("\n"):
        fenced ^= bool(dialect.FENCE.match(line))
        if not fenced and not dialect.HEADING.match(line):
            line = NAMED.sub(lambda m: f"[{m[0]}][errata.{m[1]}]" if m[1] in public else m[0], line)
        lines.append(line)
    return "\n".join(lines)


def shown(path: Path) -> str:
    """Return a page with the text of a file, or of all files of a folder."""
    name = path.relative_to(ROOT).as_posix()
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    parts = [f"# {name}"]
    for file in (file for file in inside if file.is_file()):
        language = {".py": "python", ".toml": "toml"}.get(file.suffix, "text")
        heading = [f"## {file.name}"] if path.is_dir() else []
        text = file.read_text(encoding="utf-8").rstrip()
        parts += [*heading, f"````{language}\n{text}\n````"]
    return "\n\n".join(parts) + "\n"


def relinked(text: str, page: str) -> str:
    """Return a page whose links lead to pages of the site.

    Args:
        text: The page in GitHub's Markdown.
        page: Its name in the site, as `notebooks/first-edit.md`.
    """
    names = {to: name for name, to in WHOLE.items()}
    here = ROOT if page in names else (DOCS / page).parent
    at = Path(page).parent

    def moved(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if not target or ":" in target:
            return match[0]
        to = Path(os.path.normpath(here / target))
        if to in linked_files():
            name = linked_files()[to]
        elif to.is_relative_to(DOCS):
            name = to.relative_to(DOCS).as_posix()
            name = re.sub(r"\.ipynb$", ".md", name)
        else:
            name = {**WHOLE, FRONT: "index.md"}.get(to.name, target)
        return os.path.relpath(name, at) + anchor

    return dialect.outside_code(text, lambda piece: LINK.sub(moved, piece))
