"""Strategies: what is put on top of an editor, as in `memit+blue`; the folder is the registry.

A strategy is one file (or a folder with a `strategy.py`) with one class that is mixed in front of
its host's class: it sets `name`, `title`, `paper` and `hosts` as literals, brings settings of
its own in `Settings`, and overrides what it changes. The pair is an editor like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.registry import Registry

__all__ = ["pair_facts", "strategies"]

strategies = Registry(
    "strategy", "errata.strategies", Path(__file__).parent, "errata.strategies", home="strategy",
    base="errata.strategies.base:Strategy",
    stated=("name", "title", "paper", "hosts", "needs", "spares", "weights", "exports"),
)  # fmt: skip


def pair_facts(strategy: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of `host+strategy` from those of the two; what is not named is the host's.

    Args:
        strategy: The strategy's facts.
        host: Those of the editor it is put on.
    """
    needs = dict.fromkeys((*host["needs"], *strategy["needs"]))
    return {
        **host,
        "name": f"{host['name']}+{strategy['name']}",
        "title": f"{host['title']}+{strategy['title']}",
        "paper": f"{strategy['paper']}; on {host['paper']}",
        "needs": tuple(need for need in needs if need not in strategy.get("spares", ())),
        "weights": strategy["weights"] and host["weights"],
        "exports": tuple(form for form in host["exports"] if form in strategy["exports"]),
    }
