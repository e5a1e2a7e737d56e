"""What pyproject declares is imported somewhere, and what is imported is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import errata

SOURCE = Path(errata.__file__).parent
PROJECT = Path(__file__).parent.parent / "pyproject.toml"

MODULES = {
    "pyyaml": "yaml", "lm-eval": "lm_eval", "huggingface-hub": "huggingface_hub",
    "scikit-learn": "sklearn",
}  # fmt: skip
"""Import names that differ from the name of the distribution."""

THROUGH_OTHERS = {
    "trackio": "accelerate starts it by the name of the tracker",
    "gguf": "transformers reads GGUF files with it",
    "tensorboard": "accelerate starts it by the name of the tracker",
}
"""Declared, and imported by a package to which errata gives the name; with the reason."""

ELSEWHERE = {
    "pytest": "of errata.testing alone",
    "bitsandbytes": "there where a model is quantised with it",
}
"""Imported, and not errata's to ask for; with the reason."""


def declared() -> tuple[set[str], dict[str, set[str]]]:
    """Return the import names of the dependencies, and of every extra but `all`."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        found = (re.match(r"[A-Za-z0-9_.-]+", text) for text in requirements)
        plain = (re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match)
        return {MODULES.get(name, name) for name in plain}

    extras = {
        extra: names(requirements)
        for extra, requirements in project["optional-dependencies"].items()
        if extra != "all"
    }
    return names(project["dependencies"]), extras


def imported() -> set[str]:
    """Return the top-level names of everything that src imports from elsewhere."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in {"import_module", "importlib.import_module"}
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value).partition(".")[0])
    return found - sys.stdlib_module_names - {"errata"}


def test_every_dependency_is_imported() -> None:
    core, extras = declared()
    unused = core.union(*extras.values()) - imported() - THROUGH_OTHERS.keys()
    assert not unused, "declared in pyproject and imported nowhere in src"


def test_every_import_is_declared() -> None:
    core, extras = declared()
    missing = imported() - core.union(*extras.values()) - ELSEWHERE.keys()
    assert not missing, "imported in src and not in pyproject"


def test_the_extra_all_holds_every_other() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"all"}
    (everything,) = project["optional-dependencies"]["all"]
    assert set(everything.removeprefix("errata[").removesuffix("]").split(",")) == extras
