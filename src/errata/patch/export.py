"""Patch to LoRA adapter and back, and merged checkpoints: how an edit leaves for production."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from errata.errors import ErrataError, PatchError
from errata.model.compat import quiet_transformers
from errata.model.experts import ExpertMatrix
from errata.model.stored import quantised_in
from errata.patch.adapter import CONFIG_NAME, HEAD, WEIGHTS_NAME
from errata.patch.adapter import from_lora as from_lora
from errata.patch.card import files_of, record_of
from errata.patch.changes import Change
from errata.patch.changes.base import KEEP, Merge, fitting
from errata.patch.folder import pack
from errata.patch.patch import Patch
from errata.patch.places import beside, is_transposed
from errata.store.files import open_to_others, sha256_of
from errata.store.folders import replacing, write_folder

if TYPE_CHECKING:
    from errata.model.lm import LM

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM allocates (its newest versions also 1, which older ones refuse)."""
_SMALL = 1e-7  # singular values below this share of the largest carry nothing in float32


@dataclass(frozen=True)
class LoraReport:
    """What an export wrote.

    Attributes:
        folder: The adapter folder.
        base: The base model as a server can load it: a folder or a Hub id.
        rank: The one rank of all modules (`lora_alpha` equals it, so the scaling is 1).
        modules: Paths of the adapted modules.
        lost_energy: Per module, the share of `||ΔW||²` that truncation to `rank` left out.
    """

    folder: Path
    base: str
    rank: int
    modules: tuple[str, ...]
    lost_energy: Mapping[str, float]

    @property
    def serve(self) -> str | None:
        """Command that serves the base model with this adapter; None if vLLM takes no such rank.

        The smallest of vLLM's `RANKS` that holds the adapter's is named.
        """
        limit = next((n for n in RANKS if n >= self.rank), None)
        if limit is None:
            return None
        return (
            f"vllm serve {self.base} --enable-lora --max-lora-rank {limit} "
            f"--lora-modules {self.folder.name}={self.folder}"
        )


def low_rank_svd(
    B: Float[Tensor, "d_out r"], A: Float[Tensor, "r d_in"]
) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, " k"], Float[Tensor, "k d_in"]]:
    """Return the singular value decomposition of `B A` without forming the product.

    Two thin QR decompositions and one small SVD, in float64.
    """
    q_left, r_left = torch.linalg.qr(B.double())
    q_right, r_right = torch.linalg.qr(A.double().T)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return q_left @ u, s, vh @ q_right.T


def _decompose(lm: LM, patch: Patch) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return the singular triplets of every changed projection.

    Raises:
        PatchError: If a change is none of a projection's weight.
    """
    low: dict[str, tuple[Tensor, Tensor]] = {}
    dense: dict[str, Tensor] = {}
    for change in patch.compact().changes:
        path = change.projection(lm)
        if isinstance(lm.module(path), ExpertMatrix):
            raise PatchError(
                f"{path} is one expert of a stack: an adapter of LoRA changes whole modules",
                "Export with --to merged, or keep the patch folder.",
            )
        if change.factors is not None:
            B, A = change.factors
            low[path] = B.cpu(), A.cpu()
        else:
            delta = change.difference(lm)
            delta = delta.T if is_transposed(lm.module(path)) else delta
            dense[path] = dense.get(path, 0) + delta.cpu().double()
    triplets = {}
    for path in sorted(low.keys() | dense.keys()):
        if path in dense:
            total = dense[path]
            if path in low:
                total = total + low[path][0].double() @ low[path][1].double()
            triplets[path] = torch.linalg.svd(total, full_matrices=False)
        else:
            triplets[path] = low_rank_svd(*low[path])
    return triplets


def to_lora(
    lm: LM, patch: Patch, folder: str | Path, *, max_rank: int | None = None, force: bool = False
) -> LoraReport:
    """Write a patch as a PEFT LoRA folder.

    All modules get one rank, that of the largest change (smaller ones are padded with zeros), and
    `lora_alpha` equals it, so servers that read few fields of the configuration scale correctly.

    Args:
        lm: The base model of the patch.
        patch: Changes of projection weights.
        folder: Created; must not hold an adapter already unless `force`.
        max_rank: Largest rank allowed; a change of higher rank is truncated to its leading singular
            directions and the lost energy is reported.
        force: Replace an adapter that is already there.

    Raises:
        PatchError: If the patch is empty, for another model, or changes more than projection
        weights.
        ErrataError: If the folder cannot be written.
    """
    folder = Path(folder)
    patch.check(lm)
    patch.check_finite()
    if patch.is_empty:
        raise PatchError("this patch changes nothing; there is nothing to export")
    if max_rank is not None and max_rank < 1:
        raise PatchError(f"--max-rank {max_rank}: expected at least 1")
    if (folder / CONFIG_NAME).exists() and not force:
        raise PatchError(f"{folder} already holds an adapter", "Choose another, or add --force.")
    triplets = _decompose(lm, patch)
    ranks = {}
    for path, (_, s, _) in triplets.items():
        ranks[path] = max(int((s > _SMALL * s.max()).sum()), 1)
    rank = max(ranks.values())
    if max_rank is not None:
        rank = min(rank, max_rank)
    tensors, lost = {}, {}
    for path, (u, s, vh) in triplets.items():
        keep = min(rank, len(s))
        total = float((s**2).sum())
        lost[path] = float((s[keep:] ** 2).sum()) / total if total else 0.0
        root = s[:keep].sqrt()
        A = torch.zeros(rank, vh.shape[1], dtype=torch.float32)
        B = torch.zeros(u.shape[0], rank, dtype=torch.float32)
        A[:keep] = (root[:, None] * vh[:keep]).float()
        B[:, :keep] = (u[:, :keep] * root).float()
        tensors[f"{HEAD}{path}.lora_A.weight"] = A
        tensors[f"{HEAD}{path}.lora_B.weight"] = B
    modules = tuple(triplets)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": getattr(lm.model, "name_or_path", "") or lm.name,
        "revision": lm.revision,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": is_transposed(lm.module(modules[0])),
        "target_modules": list(modules),
        "inference_mode": True,
    }
    base = config["base_model_name_or_path"]
    packed, text = pack(tensors), json.dumps(config, indent=2)
    digests = {WEIGHTS_NAME: hashlib.sha256(packed).hexdigest()}
    told = files_of(patch, record_of(patch, "lora", base, digests), _use_lora(base, folder.name))
    written = {WEIGHTS_NAME: packed, **told, CONFIG_NAME: text.encode()}
    write_folder(folder, written, force=force, what="an adapter")
    return LoraReport(folder, base, rank, modules, lost)


def _use_lora(base: str, folder: str) -> str:
    return f"""
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, {folder!r})
"""


def to_merged(lm: LM, patch: Patch, folder: str | Path, *, force: bool = False) -> Path:
    """Write the patched model as a plain transformers checkpoint with its tokenizer.

    A network whose class says how becomes part of the model, as T-Patcher's units do. The
    checkpoint is written beside the target and takes its place as a whole when it is complete. The
    model in memory stays untouched.

    Raises:
        PatchError: If the patch is for another model or holds a change that cannot be merged, or
        the folder is not empty.
        ErrataError: If the folder cannot be written.
    """
    folder = Path(folder)
    weights = tuple(change for change in patch.changes if change.parameter is not None)
    built_in = _merge_of(patch)
    if folder.exists() and any(folder.iterdir()):
        if not force:
            raise PatchError(f"{folder} is not empty", "Choose another folder, or add --force.")
        if not (folder / "config.json").is_file():
            raise PatchError(
                f"{folder} holds files that are no model checkpoint; they would be lost",
                "Choose a new or empty folder.",
            )
    patch.check(lm)
    _refuse_stored(lm, weights, built_in is not None)
    model_of = None
    if built_in is not None:
        with fitting(built_in[1][0].label):
            model_of = built_in[0](lm, built_in[1])
    with _written(folder, force) as beside:
        with replace(patch, changes=weights).applied(lm), quiet_transformers():
            (lm.model if model_of is None else model_of(lm)).save_pretrained(beside)
        lm.tokenizer.save_pretrained(beside)
        base = getattr(lm.model, "name_or_path", "") or lm.name
        digests = {path.name: sha256_of(path) for path in sorted(beside.glob("*.safetensors"))}
        record = record_of(patch, "merged", base, digests)
        for name, data in files_of(patch, record, _use_merged(folder.name)).items():
            (beside / name).write_bytes(data)
        open_to_others(beside)
    return folder


@contextmanager
def _written(folder: Path, force: bool) -> Iterator[Path]:
    """Yield the folder that a checkpoint is written to."""
    try:
        with replacing(folder, force=force, owned=None, what="files") as beside:
            yield beside
    except SafetensorError as error:  # what safetensors says where the disk is full
        raise ErrataError(
            f"cannot write {folder}: {error}",
            "Choose a folder you may write to, with enough free space.",
        ) from error


def _refuse_stored(lm: LM, weights: Sequence[Change], wider: bool) -> None:
    """Refuse to merge into weights that are not written to.

    Raises:
        PatchError: If a changed weight is quantised or offloaded, or the model is to become wider
            and is either.
    """
    names = [change.parameter for change in weights if change.parameter is not None]
    if wider:
        names += [f"{path}.weight" for path in quantised_in(lm.model)]
        names += [name for name, parameter in lm.model.named_parameters() if parameter.is_meta]
    for name in names:
        why = beside(lm, name)
        if why is not None:
            raise PatchError(
                f"{name} is {why}: a patch cannot be merged into it",
                "Export it as an adapter (--to lora), which is served beside the base as it is; or "
                "load the original weights on one device and merge there.",
            )


def _merge_of(patch: Patch) -> tuple[Merge, list[Change]] | None:
    """Return how the changes that are none of weights become part of a checkpoint, and those.

    Raises:
        PatchError: If one cannot, or each of two has a way of its own to change the model.
    """
    others = [change for change in patch.changes if change.parameter is None]
    found: Merge | None = None
    for change in others:
        merge = change.merge()
        if merge is None:
            raise PatchError(f"{change.label} cannot be merged: it changes no weight", KEEP)
        if found is not None and merge is not found:
            raise PatchError(f"{others[0].label} and {change.label} cannot be merged at once", KEEP)
        found = merge
    return None if found is None else (found, others)


def _use_merged(folder: str) -> str:
    return f"""
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})
"""
