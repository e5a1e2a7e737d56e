"""Patches on disk: `patch.json` (what it is) and `patch.safetensors` (its tensors), both whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from errata.arguments import path_of
from errata.case import Edit, described
from errata.data._records import thaw
from errata.errors import ErrataError, PatchError
from errata.patch.changes import Change, change_of
from errata.patch.document import check_document
from errata.patch.patch import Patch
from errata.patch.signature import NAME as SIGNATURE
from errata.store.files import sha256_of
from errata.store.folders import write_folder
from errata.untrusted import check_file, reachable, read_object

FORMAT = 1
JSON_NAME = "patch.json"
TENSOR_NAME = "patch.safetensors"


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file."""
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return to_bytes(own)  # clones, since safetensors refuses tensors that share memory


def save(
    patch: Patch,
    folder: str | Path,
    *,
    force: bool = False,
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a patch folder.

    Both files take their place at once: whenever the process is killed, what was there is there, or
    the new patch is. The JSON file holds the checksum of the tensor file besides.

    Args:
        patch: What to write.
        folder: Created if missing.
        force: Replace a patch that is already there.
        beside: Further files, by name, that take their place in the same step.

    Raises:
        PatchError: If the folder already holds a patch and `force` is off.
        ErrataError: If the folder cannot be written.
    """
    folder = path_of(folder, "the folder of a patch")
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
        "meta": thaw(patch.meta),
        "changes": [change.describe() for change in patch.changes],
        "edits": [described(edit) for edit in patch.edits],
        "state": plain,
        "sha256": hashlib.sha256(packed).hexdigest(),
        # older versions read the file without what they do not know
        **({"results": thaw(patch.results)} if patch.results else {}),
        **({"aftermath": thaw(patch.aftermath)} if patch.aftermath else {}),
    }
    text = json.dumps(document, ensure_ascii=False, indent=1)
    files = {**(beside or {}), TENSOR_NAME: packed, JSON_NAME: text.encode()}
    write_folder(folder, files, force=force, what="a patch", gone=(SIGNATURE,))
    return folder


def load(folder: str | Path) -> Patch:
    """Read a patch folder.

    Raises:
        PatchError: If there is none, it is half-written or damaged, or of a newer format.
    """
    folder = path_of(folder, "the folder of a patch")
    described, stored = folder / JSON_NAME, folder / TENSOR_NAME
    with reachable(folder, PatchError):
        if not folder.is_dir():
            there = folder.exists()
            raise PatchError(f"no patch folder at {folder}", _ELSEWHERE if there else None)
        for path in (described, stored):
            if not path.is_file():
                raise PatchError(
                    f"{folder} is not a complete patch: {path.name} is missing", _what_else(folder)
                )
    try:
        document = read_object(described, within=folder)
        _check_format(folder, document)
        check_document(document)
        check_file(stored, within=folder)
        if sha256_of(stored) != document.get("sha256"):
            raise PatchError(
                f"{stored} does not match the checksum in {JSON_NAME}",
                "It is damaged or half-written; make the patch again.",
            )
        return _read(document, load_file(stored))
    except PatchError:
        raise
    except ErrataError as error:  # of an edit, or of the document as such
        raise PatchError(f"{folder} is not a readable patch: {error.message}") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, SafetensorError) as error:
        raise PatchError(f"{folder} is not a readable patch: {error}") from error


_ELSEWHERE = "A patch is a folder with patch.json and patch.safetensors."


def _what_else(folder: Path) -> str:
    """Say what to do with a folder that is no patch."""
    if (folder / "adapter_config.json").is_file():
        return f"It is an adapter: errata import {folder} --out PATCH"
    if (folder / "config.json").is_file():
        return f"It is a model: errata ask {folder} --prompt … or --model {folder}"
    return "Its writer was probably interrupted; make the patch again."


def _check_format(folder: Path, document: Mapping[str, Any]) -> None:
    found = document.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise PatchError(f"{folder} says no patch format; expected a number from 1 to {FORMAT}")
    if found > FORMAT:
        raise PatchError(
            f"{folder} has patch format {found}; this errata reads up to {FORMAT}",
            "pip install -U errata",
        )


def _read(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Patch:
    """Return the patch that a document and its tensors describe.

    Raises:
        PatchError, DataError, TypeError: If a field or a tensor is not what it should be.
    """
    entries: list[dict[str, Any]] = document["changes"]
    by_change: list[dict[str, Tensor]] = [{} for _ in entries]
    state: dict[str, Any] = dict(document.get("state", {}))
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        number, _, leaf = rest.partition(".")
        if head == "state" and rest:
            state[rest] = tensor
        elif head == "changes" and leaf and number.isdecimal() and int(number) < len(entries):
            by_change[int(number)][leaf] = tensor
        else:
            raise PatchError(f"the tensor {name!r} belongs to no change of the patch")
    changes = tuple(
        _change(entry, f"changes[{i}]", part)
        for i, (entry, part) in enumerate(zip(entries, by_change, strict=True))
    )
    edits = tuple(Edit(**entry) for entry in document["edits"])
    results = tuple(document.get("results") or ())
    aftermath = document.get("aftermath") or {}
    patch = Patch(changes, edits, state, document["meta"], results, aftermath)
    try:
        _ = patch.report  # what is wrong in it is said now, not when it is looked at
    except (AttributeError, TypeError, ValueError) as error:
        raise PatchError(f"aftermath: {error}") from None
    return patch


def _change(entry: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> Change:
    try:
        return change_of(entry, tensors)
    except PatchError as error:
        raise PatchError(f"{name}: {error.message}", error.hint) from None


def same_tensors(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Return whether two tensor mappings are bit-identical."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
