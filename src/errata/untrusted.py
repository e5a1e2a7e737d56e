"""Files that may come from a stranger: read with limits, or refused in a sentence.

Whatever errata reads of a patch, an adapter, trained networks, a recipe, a run or a data set comes
through here. A file is a plain file of bounded size (a pipe would keep a reader waiting, a device
never ends), lies in the folder that it was found in, and holds JSON of bounded depth whose numbers
are finite and whose texts can be written again.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errata.errors import DataError, ErrataError

JSON_BYTES = 256 << 20
"""Of one JSON document: ten thousand edits with all that was measured take a tenth of it."""

DATA_BYTES = 4 << 30
"""Of one data file, which is read whole."""

DEPTH = 64
"""Of lists and objects in each other; errata's own go ten deep."""


class Refused(DataError, ValueError):
    """A file, or what it holds, is nothing that errata reads.

    A ValueError as well, so that what reads a damaged file says so of a refused one in the same
    words.
    """


# ---------------------------------------------------------------------- files


@contextmanager
def reachable(path: str | Path, kind: type[ErrataError] = Refused) -> Iterator[None]:
    """Say of a path that the system does not even look for: a name too long, a user unknown.

    Args:
        path: What was given.
        kind: What is raised.

    Raises:
        kind: Names the path, shortened, and what the system says.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, ErrataError):
            raise
        raise kind(f"cannot use {shortened(str(path))}: {error.strerror or error}") from None
    except RuntimeError as error:
        if "home directory" not in str(error):
            raise
        raise kind(f"cannot use {shortened(str(path))}: there is no such user") from None


def shortened(name: str) -> str:
    """Return a name as messages show it."""
    return name if len(name) <= 100 else f"{name[:60]}… ({len(name)} characters)"


def refuse_special(path: Path) -> None:
    """Refuse what is there and is neither a file nor a folder: a pipe, a socket, a device.

    Raises:
        Refused: Says what it is.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # opening it says what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise Refused(f"{path} is {_kind(mode)}; expected a file")


def check_file(path: Path, *, within: Path | None = None, limit: int | None = None) -> None:
    """Refuse what is no plain file, is too large, or lies elsewhere than where it was found.

    Args:
        path: The file.
        within: The folder of a stranger that it has to lie in, also behind links.
        limit: Bytes.

    Raises:
        Refused: Says why.
        OSError: If there is none.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{path} is {_kind(found.st_mode)}; expected a file")
    if limit is not None and found.st_size > limit:
        raise Refused(f"{path} has {found.st_size:,} bytes; expected at most {limit:,}")
    if within is not None:
        _stays(path, within)


def _kind(mode: int) -> str:
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
    )  # fmt: skip
    return next((word for test, word in kinds if test(mode)), "a device")


def _stays(path: Path, folder: Path) -> None:
    """Refuse a file that lies outside a folder; in the Hub's cache all files are links to blobs."""
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if real.is_relative_to(home):
        return
    for parent in home.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            if real.is_relative_to(parent.parent / "blobs"):
                return
    raise Refused(f"{path} is a link to {real}, outside of its folder")


def read_bytes(path: Path, *, within: Path | None = None, limit: int = JSON_BYTES) -> bytes:
    """Read a plain file; nothing else is opened for reading, so nothing can keep us waiting.

    Raises:
        Refused: If it is no plain file, too large, or lies elsewhere.
        OSError: If it cannot be read.
    """
    check_file(path, within=within, limit=limit)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:  # what it is may have changed since
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise Refused(f"{path} is {_kind(mode)}; expected a file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Refused(f"{path} has more than {limit:,} bytes")
    return data


def read_text(path: Path, *, within: Path | None = None, limit: int = JSON_BYTES) -> str:
    """Read a plain file as UTF-8.

    Raises:
        Refused: If it is not UTF-8, or what `read_bytes` refuses.
        OSError: If it cannot be read.
    """
    try:
        return read_bytes(path, within=within, limit=limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None


# ---------------------------------------------------------------------- JSON


def check_values(value: Any, *, finite: bool = True, texts: bool = True) -> None:
    """Refuse values that are nested too deep, not finite, or texts that cannot be written.

    Args:
        value: Lists, objects and what stands in them.
        finite: Whether NaN and infinity are refused.
        texts: Whether texts are looked at; not where each field's own check does.

    Raises:
        Refused: Says what is wrong.
    """
    level, depth = [value], 0
    while level:
        if depth > DEPTH:
            raise Refused(f"lists and objects more than {DEPTH} deep in each other")
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                for name in one if texts else ():
                    check_text(str(name))
                below += one.values()
            elif isinstance(one, list | tuple):
                below += one
            elif isinstance(one, str) and texts:
                check_text(one)
            elif finite and isinstance(one, float) and not math.isfinite(one):
                raise Refused(f"the number {one}; expected a finite one")
        level, depth = below, depth + 1


def check_text(text: str) -> None:
    """Refuse a text that no file and no tokenizer takes: one with half a character.

    Raises:
        Refused: Says which.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(
            f"the text {ascii(text)[:60]} holds half a character (an unpaired surrogate)"
        ) from None


def parse(data: bytes | str, *, finite: bool = False) -> Any:
    """Parse JSON of bounded depth.

    Args:
        data: The document.
        finite: Whether NaN and infinity are refused: errata's own files may say that something was
            not finite, where it is looked at by what reads it.

    Raises:
        Refused: If it is no JSON, or what `check_values` refuses.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise Refused(f"lists and objects more than {DEPTH} deep in each other") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise Refused(f"not valid JSON: {error}") from None
    check_values(value, finite=finite)
    return value


def read_json(
    path: Path, *, within: Path | None = None, limit: int = JSON_BYTES, finite: bool = False
) -> Any:
    """Read a JSON document.

    Raises:
        Refused: See `read_bytes` and `parse`.
        OSError: If it cannot be read.
    """
    data = read_bytes(path, within=within, limit=limit)
    try:
        return parse(data, finite=finite)
    except Refused as error:
        raise Refused(f"{path}: {error.message}") from None


def read_object(
    path: Path, *, within: Path | None = None, limit: int = JSON_BYTES, finite: bool = False
) -> dict[str, Any]:
    """Read a JSON document that has to be an object.

    Raises:
        Refused: If it is none; see `read_json`.
        OSError: If it cannot be read.
    """
    value = read_json(path, within=within, limit=limit, finite=finite)
    if not isinstance(value, dict):
        raise Refused(f"{path} holds {described(value)}; expected an object")
    return value


# ---------------------------------------------------------------------- YAML


def check_yaml(text: str) -> None:
    """Refuse YAML that unfolds, runs code or goes deep, before anything is made of it.

    Args:
        text: The document; whether it is YAML at all is seen as far as it is read.

    Raises:
        Refused: Says what it uses.
        yaml.YAMLError: If it is no YAML.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise Refused(f"lists and objects more than {DEPTH} deep in each other")
        if isinstance(event, yaml.AliasEvent):  # a few lines of them unfold to gigabytes
            raise Refused("uses YAML aliases, which errata does not read")
        tag = str(getattr(event, "tag", None) or "")
        if tag.startswith("!"):
            raise Refused(f"uses {tag}, which may run code")


def described(value: object) -> str:
    """Say in a few words what a JSON value is."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = json.dumps(value) if isinstance(value, bool | int | float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
