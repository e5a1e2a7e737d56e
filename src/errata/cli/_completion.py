"""What the shell completes: names of editors, data sets and models."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def editor_names(incomplete: str) -> list[str]:
    """Complete the name of an editor; read from the sources, so that the shell does not wait."""
    from errata.editors import editors

    return _starting(editors.all if "+" in incomplete else editors.entries, incomplete)


def data_names(incomplete: str) -> list[str]:
    """Complete the name of a data set."""
    from errata.data import datasets

    return _starting(datasets.entries, incomplete)


def model_names(incomplete: str) -> list[str]:
    """Complete the name of a model: pocket, saved models near by, what the Hub's cache holds."""
    cache = os.environ.get("HF_HUB_CACHE")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(cache) if cache else home / "hub"
    names = ["pocket"]
    try:
        names += [path.name[8:].replace("--", "/", 1) for path in hub.glob("models--*")]
        head = incomplete.rpartition("/")[0]
        folder = Path(head or ("/" if incomplete.startswith("/") else "."))
        prefix = f"{head}/" if "/" in incomplete else ""
        names += [prefix + path.parent.name for path in folder.glob("*/config.json")]
    except OSError:
        pass
    return _starting(names, incomplete)
