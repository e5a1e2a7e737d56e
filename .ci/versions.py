"""Which versions pyproject.toml, requirements.lock and .ci/held.txt ask for.

Standard library only.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
HELD = ROOT / ".ci" / "held.txt"

# `web` is left out of the tested range: Gradio and what it brings are 100 MB for one page. That has
# an environment of its own (.ci/web.py) on top of the locked one.
EXTRAS = ("report", "general", "cluster", "track")

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(\[[^]]*\])?\s*(>=|==)\s*([0-9][^\s;,]*)\s*(;.*)?")


@dataclass(frozen=True)
class Requirement:
    """One requirement as pyproject.toml and the lock write it: one bound, perhaps a marker."""

    name: str
    extras: str
    relation: str
    version: str
    marker: str

    def pinned(self) -> str:
        """Return the requirement with its bound as the one version."""
        return f"{self.name}{self.extras}=={self.version}{self.marker}"


def parse(text: str) -> Requirement:
    """Read `name[extras]>=version; marker`, or `==`; anything else is a ValueError."""
    found = _REQUIREMENT.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r}: expected a name and one bound, as in numpy>=1.26")
    name, extras, relation, version, marker = found.groups()
    marker = f" ; {marker[1:].strip()}" if marker else ""
    return Requirement(canonical(name), extras or "", relation, version, marker)


def canonical(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(text: str) -> list[Requirement]:
    """Read lines of `name==version ; marker`; comments and empty lines are passed over."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [parse(line) for line in lines if line]


def declared(project: dict, extras: tuple[str, ...] = ()) -> list[str]:
    """Return what a pyproject.toml asks for: to run, to develop and to build, with these extras."""
    table = project["project"]
    wanted = [*table["dependencies"], *project["dependency-groups"]["dev"]]
    wanted += project["build-system"]["requires"]
    for extra in extras:
        wanted += table["optional-dependencies"][extra]
    return list(dict.fromkeys(wanted))


def lowest(wanted: list[str]) -> list[str]:
    """Return every requirement pinned to its lower bound."""
    return list(dict.fromkeys(parse(text).pinned() for text in wanted))


def oldest_python(project: dict) -> tuple[int, int]:
    """Return the oldest python that a pyproject.toml admits."""
    major, minor = project["project"]["requires-python"].removeprefix(">=").split(".")
    return int(major), int(minor)


def with_torch(wanted: list[str], torch: str) -> list[str]:
    """Return the requirements with another torch: a version, or `newest` for whatever there is."""
    others = [text for text in wanted if parse(text).name != "torch"]
    return ["torch" if torch == "newest" else f"torch=={torch}", *others]


def read_project() -> dict:
    """Read this repository's pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def held() -> list[str]:
    """Return what .ci/held.txt holds."""
    return [pin.pinned() for pin in read_pins(HELD.read_text(encoding="utf-8"))]
