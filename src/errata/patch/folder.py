"""Patches on disk: `patch.json` (what it is) and `patch.safetensors` (its tensors), both whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from errata.case import Edit
from errata.errors import PatchError
from errata.patch.changes import change_of
from errata.patch.patch import Patch
from errata.store.files import sha256_of, write_together

FORMAT = 1
JSON_NAME = "patch.json"
TENSOR_NAME = "patch.safetensors"


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file."""
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return to_bytes(own)  # clones, since safetensors refuses tensors that share memory


def save(patch: Patch, folder: str | Path, *, force: bool = False) -> Path:
    """Write a patch folder.

    Both files are complete before either takes its place, so a full disk costs nothing that was
    there. The JSON file holds the checksum of the tensor file: a folder whose writer was killed in
    between is recognised when it is read.

    Args:
        patch: What to write.
        folder: Created if missing.
        force: Replace a patch that is already there.

    Raises:
        PatchError: If the folder already holds a patch and `force` is off.
        ErrataError: If the folder cannot be written.
    """
    folder = Path(folder)
    if (folder / JSON_NAME).exists() and not force:
        raise PatchError(
            f"{folder} already holds a patch", "Choose another folder, or add --force."
        )
    tensors: dict[str, Tensor] = {}
    for number, change in enumerate(patch.changes):
        for name, tensor in change.tensors().items():
            tensors[f"changes.{number}.{name}"] = tensor
    plain: dict[str, Any] = {}
    for name, value in patch.state.items():
        if isinstance(value, Tensor):
            tensors[f"state.{name}"] = value
        else:
            plain[name] = value
    packed = pack(tensors)
    document = {
        "format": FORMAT,
        "meta": dict(patch.meta),
        "changes": [change.describe() for change in patch.changes],
        "edits": [_described(edit) for edit in patch.edits],
        "state": plain,
        "sha256": hashlib.sha256(packed).hexdigest(),
    }
    text = json.dumps(document, ensure_ascii=False, indent=1)
    write_together({folder / TENSOR_NAME: packed, folder / JSON_NAME: text.encode()})
    return folder


def _described(edit: Edit) -> dict[str, Any]:
    """Return an edit without what it does not say, as older versions wrote it."""
    return {key: value for key, value in asdict(edit).items() if value not in (None, ())}


def load(folder: str | Path) -> Patch:
    """Read a patch folder.

    Raises:
        PatchError: If there is none, it is half-written or damaged, or of a newer format.
    """
    folder = Path(folder)
    described, stored = folder / JSON_NAME, folder / TENSOR_NAME
    if not folder.is_dir():
        raise PatchError(f"no patch folder at {folder}")
    for path in (described, stored):
        if not path.is_file():
            raise PatchError(
                f"{folder} is not a complete patch: {path.name} is missing",
                "Its writer was probably interrupted; make the patch again.",
            )
    try:
        document = json.loads(described.read_text(encoding="utf-8"))
        if document["format"] > FORMAT:
            raise PatchError(
                f"{folder} has patch format {document['format']}; this errata reads up to {FORMAT}",
                "pip install -U errata",
            )
        if sha256_of(stored) != document["sha256"]:
            raise PatchError(
                f"{stored} does not match the checksum in {JSON_NAME}",
                "It is damaged or half-written; make the patch again.",
            )
        tensors = load_file(stored)
        by_change: list[dict[str, Tensor]] = [{} for _ in document["changes"]]
        state: dict[str, Any] = dict(document["state"])
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if head == "changes":
                number, _, leaf = rest.partition(".")
                by_change[int(number)][leaf] = tensor
            else:
                state[rest] = tensor
        changes = tuple(
            change_of(entry, part)
            for entry, part in zip(document["changes"], by_change, strict=True)
        )
        edits = tuple(Edit(**entry) for entry in document["edits"])
        return Patch(changes, edits, state, document["meta"])
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise PatchError(f"{folder} is not a readable patch: {error}") from error


def same_tensors(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Return whether two tensor mappings are bit-identical."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
