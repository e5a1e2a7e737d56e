"""Files of .ci/site as modules: what builds the site is tested without what it is built with."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def script(name: str) -> ModuleType:
    """Import a file of .ci/site that needs the standard library only."""
    folder = str(ROOT / ".ci" / "site")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)
