"""Edits that the tests of this folder share."""

from __future__ import annotations

from errata.edit import Edit

EDITS = [
    Edit("The capital of France is", "Rome", subject="France"),
    Edit("Anna lives in", "Paris", subject="Anna"),
    Edit("The mother tongue of Danielle is", "Italian", subject="Danielle"),
    Edit("Who is the mayor of Berlin? It is", "Anna", subject="Berlin"),
]
"""Targets of one to several tokens, subjects at the start and in the middle."""
