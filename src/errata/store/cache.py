"""Files that are expensive to make again: written whole, checked by checksum when read."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.store.digest import digest_of
from errata.store.files import write_atomically
from errata.untrusted import read_object

log = logging.getLogger(__name__)

CHECKSUM = "sha256"


def digest(*parts: object) -> str:
    """Return 16 hex digits that stand for `parts` (which have to be plain JSON values)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return digest_of(text)[:16]


def folder_name(text: str) -> str:
    """Turn any text into a readable and safe folder name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:48] or "x"


def _sum_of(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Checksum over names, dtypes, shapes, bytes and facts."""
    total = hashlib.sha256(json.dumps(dict(sorted(facts.items()))).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts to a safetensors file, atomically, with a checksum."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = {key: json.dumps(value) for key, value in facts.items()}
    write_atomically(path, save(plain, metadata={**text, CHECKSUM: _sum_of(plain, text)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read what `save_tensors` wrote; None if the file is absent, half-written or altered."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as handle:
            text = dict(handle.metadata() or {})
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}
        expected = text.pop(CHECKSUM, None)
        if expected != _sum_of(tensors, text):
            raise ValueError("checksum differs")
        return tensors, {key: json.loads(value) for key, value in text.items()}
    except (SafetensorError, ValueError, OSError) as error:
        log.warning("%s is broken (%s); it is built again", path, error)
        return None


def save_json(path: Path, value: Any) -> None:
    """Write a JSON document, atomically, with a checksum."""
    body = json.dumps(value, sort_keys=True)
    document = {"value": value, CHECKSUM: digest_of(body)}
    write_atomically(path, json.dumps(document, indent=1).encode())


def load_json(path: Path) -> Any | None:
    """Read what `save_json` wrote; None if the file is absent, half-written or altered."""
    if not path.is_file():
        return None
    try:
        document = read_object(path)
        body = json.dumps(document["value"], sort_keys=True)
        if document[CHECKSUM] != digest_of(body):
            raise ValueError("checksum differs")
        return document["value"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        log.warning("%s is broken (%s); it is built again", path, error)
        return None
