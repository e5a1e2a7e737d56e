"""Strategies: what is put on top of an editor, as in `memit+blue`; the folder is the registry.

A strategy is one file (or a folder with a `strategy.py`) with one class that is mixed in front of
its host's class: it sets `name`, `title`, `paper` and `hosts` as literals, brings settings of
its own in `Settings`, and overrides what it changes. The pair is an editor like any other.
"""

from __future__ import annotations

from pathlib import Path

from errata.registry import Registry

__all__ = ["strategies"]

strategies = Registry(
    "strategy", "errata.strategies", Path(__file__).parent, "errata.strategies", home="strategy"
)
