"""The header of a GGUF file: what it holds and how long it has to be, read in milliseconds.

The reader of the package `gguf` maps every field into arrays, which takes seconds for a large
vocabulary, and a file that was cut short makes it fail somewhere in numpy. Here values are skipped.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_LONGEST = 1 << 24  # bytes of one text, entries of an array: beyond it the header is rubbish


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        version: Of the format.
        texts: Keys with a text, and the text (`general.architecture` …).
        keys: All keys.
        tensors: Names of the tensors.
        shapes: Their shapes as the file has them: the fastest axis first.
        bytes: Length that the file has to have at least.
    """

    version: int
    texts: dict[str, str]
    keys: frozenset[str]
    tensors: tuple[str, ...]
    bytes: int
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """Name of the architecture; empty if it does not say."""
        return self.texts.get("general.architecture", "")


class _Cut(ValueError):
    """The header goes on where the file ends, or holds what no header does."""


def read_header(path: Path) -> Header:
    """Read the header of a file that begins as GGUF files do.

    Raises:
        ValueError: If it ends too early or makes no sense.
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        file.read(4)
        (version,) = _numbers(file, "<I")
        if version not in VERSIONS:
            raise _Cut(f"it is GGUF version {version}; versions 2 and 3 are read")
        tensors, pairs = _numbers(file, "<QQ")
        if max(tensors, pairs) > _LONGEST:
            raise _Cut(f"its header counts {tensors} tensors and {pairs} keys")
        texts: dict[str, str] = {}
        keys = []
        alignment = 32
        for _ in range(pairs):
            key = _text(file)
            (kind,) = _numbers(file, "<I")
            keys.append(key)
            if kind == _STRING:
                texts[key] = _text(file)
            elif key == "general.alignment" and kind == 4:
                (alignment,) = _numbers(file, "<I")
            else:
                _skip(file, kind)
        names, ends = [], [0]
        shapes = {}
        for _ in range(tensors):
            names.append(_text(file))
            (axes,) = _numbers(file, "<I")
            if axes > 8:
                raise _Cut(f"the tensor {names[-1]!r} has {axes} axes")
            shape = shapes[names[-1]] = _numbers(file, f"<{axes}Q")
            kind, offset = _numbers(file, "<IQ")
            ends.append(offset + _tensor_bytes(kind, math.prod(shape)))
        begin = -(-file.tell() // max(alignment, 1)) * max(alignment, 1)
    length = begin + max(ends) if tensors else begin
    return Header(version, texts, frozenset(keys), tuple(names), length, shapes)


def _numbers(file: BinaryIO, form: str) -> tuple[int, ...]:
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise _Cut("it ends in the middle of its header")
    return struct.unpack(form, data)


def _text(file: BinaryIO) -> str:
    (length,) = _numbers(file, "<Q")
    if length > _LONGEST:
        raise _Cut(f"its header holds a text of {length} bytes")
    data = file.read(length)
    if len(data) < length:
        raise _Cut("it ends in the middle of its header")
    return data.decode("utf-8", "replace")


def _skip(file: BinaryIO, kind: int) -> None:
    if kind in _SIZES:
        file.seek(_SIZES[kind], 1)
    elif kind == _STRING:
        _text(file)
    elif kind == _ARRAY:
        inner, count = _numbers(file, "<IQ")
        if count > _LONGEST:
            raise _Cut(f"its header holds an array of {count} entries")
        if inner in _SIZES:
            file.seek(count * _SIZES[inner], 1)
        else:
            for _ in range(count):
                _skip(file, inner)
    else:
        raise _Cut(f"its header holds a value of unknown type {kind}")


def _tensor_bytes(kind: int, numbers: int) -> int:
    """Return the bytes of a tensor; 0 for a type that the installed package does not know."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        return 0
    return numbers // block * size
