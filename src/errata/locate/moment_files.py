"""Files of second moments: what they belong to, and the refusal of what belongs elsewhere."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import DataError, EditError
from errata.store.cache import digest, save_tensors
from errata.untrusted import check_file, parse

if TYPE_CHECKING:
    from errata.model.lm import LM

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Moment:
    """The second moment of one layer's keys.

    Attributes:
        matrix: `sum k k^T / tokens`, uncentred.
        tokens: How many tokens were counted; 0 if a given file does not say.
        source: What text, or which file; empty if not known.
    """

    matrix: Float[Tensor, "f f"]
    tokens: int
    source: str = ""


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 over type, shape and bytes of a tensor."""
    plain = tensor.detach().cpu().contiguous()
    total = hashlib.sha256(f"{plain.dtype}|{tuple(plain.shape)}|".encode())
    total.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def tokenizer_digest(lm: LM) -> str:
    """Return a digest of what decides the ids of a text: vocabulary, merges, special tokens.

    Truncation and padding are left out, because every call to a tokenizer may set them.
    """
    plain: dict[str, Any] = json.loads(cast(Any, lm.tokenizer).backend_tokenizer.to_str())
    return digest({k: v for k, v in plain.items() if k not in ("truncation", "padding")})


def save_moments(path: str | Path, lm: LM, moments: Mapping[int, Moment]) -> None:
    """Write second moments to a file for the setting `moments_file`.

    The file says which weights, layers and tokenizer it was counted with, and is refused for any
    other; each matrix has a checksum.

    Args:
        path: A safetensors file; one that is there is replaced.
        lm: The model whose keys were counted.
        moments: From `get_moments` or `count_moments`, by layer.

    Raises:
        ErrataError: If the file cannot be written.
    """
    layers = {
        str(layer): {
            "site": lm.site(layer).path,
            "tokens": moment.tokens,
            **({"text": moment.source} if moment.source else {}),
            "sha256": tensor_digest(moment.matrix),
        }
        for layer, moment in moments.items()
    }
    facts = {
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "tokenizer": tokenizer_digest(lm),
        "layers": layers,
    }
    named = {f"mom2.{layer}": moment.matrix for layer, moment in moments.items()}
    save_tensors(Path(path), named, {"errata_moments": facts})


def given_moments(lm: LM, layers: Sequence[int], path: Path) -> dict[int, Moment]:
    """Read moments from a user's file; one without errata's facts only has to have the shapes.

    Raises:
        DataError: If the file cannot be read, is damaged or lacks a layer.
        EditError: If it is of another model, layer or tokenizer.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_file(path)
        with safe_open(path, "pt") as handle:
            names = set(handle.keys())
            for layer in layers:
                if f"mom2.{layer}" not in names:
                    held = sorted(name for name in names if name.startswith("mom2."))
                    raise DataError(
                        f"{path} holds no tensor mom2.{layer}; it holds {', '.join(held) or 'none'}"
                    )
            found = {layer: handle.get_tensor(f"mom2.{layer}") for layer in layers}
            facts = parse((handle.metadata() or {}).get("errata_moments", "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"cannot read moments from {path}: {error}") from error
    for layer, matrix in found.items():
        f = lm.site(layer).d_in
        if tuple(matrix.shape) != (f, f):
            raise EditError(
                f"{path}: mom2.{layer} has shape {tuple(matrix.shape)}; the keys need {(f, f)}",
                "The moments are of another model.",
            )
    if facts is None:
        log.info("%s does not say of which model it is; only its shapes were checked", path)
        return {layer: Moment(matrix, 0, str(path)) for layer, matrix in found.items()}
    _check_facts(lm, found, facts, path)
    entries = facts["layers"]
    return {
        layer: Moment(matrix, entries[str(layer)]["tokens"], entries[str(layer)].get("text") or "")
        for layer, matrix in found.items()
    }


def _check_facts(lm: LM, found: Mapping[int, Tensor], facts: Mapping[str, Any], path: Path) -> None:
    """Refuse moments of other weights, another tokenizer or another layer, and damaged ones."""
    again = "Count them for this model: leave moments_file out."
    if facts.get("fingerprint") != lm.fingerprint:
        raise EditError(
            f"{path} was counted on {facts.get('model')}; {lm.name} has other weights", again
        )
    if facts.get("tokenizer") != tokenizer_digest(lm):
        raise EditError(f"{path} was counted with another tokenizer than that of {lm.name}", again)
    for layer, matrix in found.items():
        entry, site = facts.get("layers", {}).get(str(layer), {}), lm.site(layer).path
        if entry.get("site") != site:
            raise EditError(
                f"{path}: mom2.{layer} was counted at {entry.get('site')}, not at {site}", again
            )
        if entry.get("sha256") != tensor_digest(matrix):
            raise DataError(f"{path} is damaged: mom2.{layer} differs from its checksum", again)
