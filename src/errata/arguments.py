"""What a program hands over and is of another kind than is meant, said where it is handed over.

Python's own message would come from somewhere inside, and speak of an attribute or an iterator. The
command line makes its arguments itself, and needs none of this.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from errata.errors import ArgumentError, ErrataError


def expect(
    given: object,
    kinds: type | tuple[type, ...],
    what: str,
    expected: str,
    hint: str | None = None,
    error: type[ErrataError] = ArgumentError,
) -> None:
    """Refuse an argument that is of none of these kinds.

    Args:
        given: The argument.
        kinds: Kinds that it may be of.
        what: What the message calls it.
        expected: What it should be, in words.
        hint: What to type instead.
        error: What is raised.

    Raises:
        ArgumentError: Names what was given and what was expected.
    """
    if not isinstance(given, kinds):
        found = f"the class {given.__name__}" if isinstance(given, type) else a(type(given))
        found = "nothing (None)" if given is None else found
        raise error(f"{what} is {found}; expected {expected}", hint)


def a(kind: type) -> str:
    """Return the name of a kind behind its article."""
    return f"a{'n' * (kind.__name__[0] in 'AEIOaeio')} {kind.__name__}"


def expect_whole(given: object, what: str) -> None:
    """Refuse what is no whole number; truth values are none.

    Raises:
        ArgumentError: Names what was given.
    """
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise ArgumentError(f"{what} is {given!r}; expected a whole number")


def path_of(given: Any, what: str) -> Path:
    """Return a path.

    Raises:
        ArgumentError: If it is none.
    """
    expect(given, (str, os.PathLike), what, "a path")
    return Path(given)


def several(
    given: Any,
    what: str,
    expected: str = "a list of texts",
    error: type[ErrataError] = ArgumentError,
) -> tuple[Any, ...]:
    """Return several things as a tuple; a text is one thing, though Python takes it for letters.

    Raises:
        ArgumentError: If it is a text, or no list of any kind.
    """
    if isinstance(given, str):
        raise error(f"{what} is the text {given!r}; expected {expected}", "Put it in [ ].")
    expect(given, Iterable, what, expected, error=error)
    return tuple(given)


def all_of(
    given: Any,
    kind: type,
    what: str,
    expected: str,
    hint: str | None = None,
    error: type[ErrataError] = ArgumentError,
) -> tuple[Any, ...]:
    """Return several things of one kind as a tuple.

    Their kinds are looked at, not each of them: patches of ten thousand edits are made again and
    again.

    Raises:
        ArgumentError: If it is no list, or one of them is of another kind.
    """
    held = several(given, what, expected, error)
    if not all(issubclass(found, kind) for found in set(map(type, held))):
        for one in held:
            expect(one, kind, f"one of the {what}", a(kind), hint, error)
    return held


def settings_by_name(given: Any, what: str) -> dict[str, Any]:
    """Return settings by their names; None: none are given.

    Raises:
        ArgumentError: If it is no mapping.
    """
    if given is not None:
        expect(given, Mapping, what, "a mapping", "Type: {NAME: VALUE, …}")
    return dict(given or {})
