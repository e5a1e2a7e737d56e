"""Drawing broken inputs: of JSON, TOML, tensors, bytes and command lines, all from one seed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TEXTS = (
    "", " ", "\x00", "\x1b[2J\x1b]0;x\x07", "a\nb\r\nc", "=1+1", "../../../etc/passwd", "/dev/zero",
    "/dev/null", "x" * 300, "🙂" * 50, "e\u0301", "\u202egnp", "{x}", "{0}", "%s%n", "'; --",
    "[bold]x[/",
    "$(touch ran)", "`touch ran`", "own:99", "own:0", "nan", "inf", "1e999", "true", "null", "-1",
    "\ud800", "a" * 20_000, "\u2028", "\ufeffx", "NaN", "~nobody-here/x", "~",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"), 2**31, 2**63,
    10**30, True, False,
)  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = 1
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


def nasty(rng: Random) -> Any:
    """Return a value that nobody expects."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice([None, [], {}, [None], {"": ""}, [[]], [1, "a", None]])
    if kind == 3:
        return nested(rng.choice((3, 70, 300)))
    return [rng.choice(TEXTS) for _ in range(rng.randrange(4))]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a document."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value[:20]):
            yield from places(item, (*path, number))


def changed(document: Any, rng: Random) -> Any:
    """Return a document with one to three changes."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(list(places(document)))
        if not path:
            if rng.random() < 0.1:
                return nasty(rng)
            if isinstance(document, dict):
                document[rng.choice(("x", "kind", "path", "device", "task"))] = nasty(rng)
            continue
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        kind = rng.random()
        if kind < 0.25:
            del holder[path[-1]]
        elif kind < 0.35 and isinstance(holder, list):
            holder.append(copy.deepcopy(rng.choice(holder)))
        else:
            holder[path[-1]] = nasty(rng)
    return document


def broken_bytes(data: bytes, rng: Random) -> bytes:
    """Return data cut, flipped, doubled or replaced."""
    kind = rng.randrange(7)
    at = rng.randrange(max(len(data), 1))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        return (
            data[:at] + rng.choice((b"\x00", b"\xff\xfe", b"[" * 100_000, b"\n", b'"')) + data[at:]
        )
    if kind == 3:
        return rng.choice(
            (b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf" + data, b"null", b"{}", b"[]", b"\x00" * 64)
        )
    if kind == 4:
        return data + data
    if kind == 5:
        return data.decode("utf-8", "replace").encode("utf-16")
    return bytes(rng.randrange(256) for _ in range(200))


def broken_json(path: Path, rng: Random) -> None:
    """Change a JSON file."""
    if rng.random() < 0.25:
        path.write_bytes(broken_bytes(path.read_bytes(), rng))
        return
    document = changed(json.loads(path.read_bytes()), rng)
    path.write_text(json.dumps(document, ensure_ascii=True), encoding="utf-8")


def broken_lines(path: Path, rng: Random) -> None:
    """Change one line of a JSONL file."""
    lines = path.read_bytes().splitlines(keepends=True)
    if rng.random() < 0.25 or not lines:
        path.write_bytes(broken_bytes(path.read_bytes(), rng))
        return
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(changed(json.loads(lines[at]), rng)).encode() + b"\n"
    path.write_bytes(b"".join(lines))


def broken_tensors(path: Path, rng: Random) -> None:
    """Change a safetensors file."""
    if rng.random() < 0.3:
        path.write_bytes(broken_bytes(path.read_bytes(), rng))
        return
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = rng.choice(sorted(tensors) or ["none"])
    tensor = tensors.get(name, torch.ones(2, 2))
    changes: list[Callable[[], torch.Tensor]] = [
        tensor.flatten,
        lambda: tensor[None],
        lambda: tensor.T.contiguous() if tensor.ndim == 2 else tensor,
        lambda: tensor.new_zeros(0),
        lambda: tensor.new_ones(1),
        lambda: tensor.new_zeros((0, *tensor.shape[1:])),
        lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor,
        tensor.double,
        tensor.half,
        tensor.long,
        tensor.bool,
        lambda: torch.full_like(
            tensor.float(), rng.choice((float("nan"), float("inf"), 1e38, 0.0))
        ),
        lambda: tensor.new_ones(()),
        lambda: tensor.new_ones((2, 3, 4)),
        lambda: tensor.float() * 1e30,
    ]
    kind = rng.random()
    if kind < 0.15:
        tensors.pop(name, None)
    elif kind < 0.25:
        tensors[rng.choice(("x", "changes.7.A", "state.", "changes.0.", "changes.-1.A"))] = tensor
    else:
        tensors[name] = rng.choice(changes)()
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path)


def special(path: Path, rng: Random) -> None:
    """Put something in the place of a file that is none: a pipe, a device, a folder, a link."""
    path.unlink(missing_ok=True)
    kind = rng.randrange(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to("/dev/zero")
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        path.symlink_to("/etc/passwd")


def resigned(folder: Path) -> None:
    """Write the checksum into patch.json that belongs to the tensors."""
    path = folder / "patch.json"
    try:
        document = json.loads(path.read_bytes())
        document["sha256"] = hashlib.sha256((folder / "patch.safetensors").read_bytes()).hexdigest()
    except (OSError, ValueError, TypeError, RecursionError):
        return
    path.write_text(json.dumps(document), encoding="utf-8")


def broken_folder(folder: Path, rng: Random) -> None:
    """Break one file of a folder, as its kind can be broken."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    weighed = [p for p in files if p.suffix in (".json", ".jsonl", ".safetensors", ".toml")]
    path = rng.choice(weighed or files)
    if rng.random() < 0.06:
        special(path, rng)
    elif path.suffix == ".json":
        broken_json(path, rng)
    elif path.suffix == ".jsonl":
        broken_lines(path, rng)
    elif path.suffix == ".safetensors":
        broken_tensors(path, rng)
    else:
        path.write_bytes(broken_bytes(path.read_bytes(), rng))
    if path.name == "patch.safetensors" and path.is_file() and rng.random() < 0.9:
        resigned(folder)
