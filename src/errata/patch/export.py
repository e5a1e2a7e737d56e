"""Patch to LoRA adapter and back, and merged checkpoints: how an edit leaves for production."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from errata.arguments import path_of
from errata.errors import ConfigError, ErrataError, PatchError
from errata.model.compat import quiet_transformers
from errata.model.given import expect_model
from errata.model.pretrained import read
from errata.model.stored import quantised_in
from errata.patch.adapter import CONFIG_NAME, HEAD, WEIGHTS_NAME
from errata.patch.adapter import from_lora as from_lora
from errata.patch.card import files_of, record_of
from errata.patch.changes import Change
from errata.patch.changes.base import KEEP, Merge, fitting
from errata.patch.factored import base_of, factored, lost_at, of_base
from errata.patch.factored import low_rank_svd as low_rank_svd
from errata.patch.folder import pack
from errata.patch.patch import Patch
from errata.patch.places import beside, is_transposed
from errata.patch.signature import NAME as SIGNATURE
from errata.store.files import open_to_others, sha256_of
from errata.store.folders import replacing, write_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from errata.model.lm import LM

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM allocates (its newest versions also 1, which older ones refuse).

An adapter of any rank up to the allocated one is served: vLLM pads it."""


@dataclass(frozen=True)
class LoraReport:
    """What an export wrote.

    Attributes:
        folder: The adapter folder.
        base: The base model as a server can load it: a folder or a Hub id.
        rank: The one rank of all modules (`lora_alpha` equals it, so the scaling is 1).
        modules: Paths of the adapted modules.
        lost_energy: Per module, the share of `||ΔW||²` that truncation to `rank` left out.
        lost_when_served: Where `rank` is larger than any server takes: what truncation to the
            largest of `RANKS` would leave out, per module.
    """

    folder: Path
    base: str
    rank: int
    modules: tuple[str, ...]
    lost_energy: Mapping[str, float]
    lost_when_served: Mapping[str, float] = field(default_factory=dict)

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
    expect_model(lm)
    folder = path_of(folder, "the folder of an adapter")
    if (folder / CONFIG_NAME).exists() and not force:
        raise PatchError(f"{folder} already holds an adapter", "Choose another, or add --force.")
    found = factored(lm, patch, max_rank)
    rank, tensors = found.rank, {}
    for path, (B, A) in found.pairs.items():
        tensors[f"{HEAD}{path}.lora_A.weight"] = A
        tensors[f"{HEAD}{path}.lora_B.weight"] = B
    modules = tuple(found.pairs)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_of(lm),
        "revision": lm.revision,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(lm.module(c.projection(lm))) for c in patch.changes),
        "target_modules": list(modules),
        "inference_mode": True,
    }
    base = config["base_model_name_or_path"]
    packed, text = pack(tensors), json.dumps(config, indent=2)
    digests = {WEIGHTS_NAME: hashlib.sha256(packed).hexdigest()}
    told = files_of(
        patch, record_of(of_base(patch), "lora", base, digests), _use_lora(base, folder.name)
    )
    written = {WEIGHTS_NAME: packed, **told, CONFIG_NAME: text.encode()}
    write_folder(folder, written, force=force, what="an adapter", gone=(SIGNATURE,))
    most = RANKS[-1]
    beyond = lost_at(found.pairs, most) if rank > most else {}
    return LoraReport(folder, base, rank, modules, found.lost, beyond)


def _use_lora(base: str, folder: str) -> str:
    return f"""
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, {folder!r})
"""


def to_merged(
    lm: LM,
    patch: Patch,
    folder: str | Path,
    *,
    max_shard_size: str | None = None,
    as_stored: bool = False,
    force: bool = False,
) -> Path:
    """Write the patched model as a plain transformers checkpoint with its tokenizer.

    A network whose class says how becomes part of the model, as T-Patcher's units do. The
    checkpoint is written beside the target and takes its place as a whole when it is complete. The
    model in memory stays untouched.

    Args:
        lm: The base model of the patch.
        patch: Changes that can be part of a checkpoint.
        folder: Created; must be empty unless `force`.
        max_shard_size: Largest file of weights, as transformers takes it (`2GB`); default: its own.
        as_stored: Write weights in the type that the base model's own files have (each sum is
            rounded once more), and not in the type it was loaded in.
        force: Replace a checkpoint that is already there.

    Raises:
        ConfigError: If `max_shard_size` is no size.
        PatchError: If the patch is for another model or holds a change that cannot be merged, or
            the folder is not empty.
        ErrataError: If the folder cannot be written.
    """
    folder = Path(folder)
    shards: dict[str, Any] = {}
    if max_shard_size is not None:
        shards["max_shard_size"] = _size(max_shard_size)
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
            made = lm.model if model_of is None else model_of(lm)
            stored = _stored_in(lm) if as_stored else made.dtype
            if stored != made.dtype:
                shards["state_dict"] = _cast(made, stored)
            made.save_pretrained(beside, **shards)
        if stored != made.dtype:
            _say_type(beside / "config.json", stored)
        lm.tokenizer.save_pretrained(beside)
        base = base_of(lm)
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


def _stored_in(lm: LM) -> torch.dtype:
    """Return the type of the base model's own files, as its configuration tells it."""
    from transformers import AutoConfig

    told = read(AutoConfig, base_of(lm), weights=False, revision=lm.revision).dtype
    return told if isinstance(told, torch.dtype) else lm.dtype


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights in another type; those that are shared stay so."""
    cast: dict[int, Tensor] = {}
    return {
        name: cast.setdefault(
            tensor.data_ptr(), tensor.to(dtype) if tensor.is_floating_point() else tensor
        )
        for name, tensor in model.state_dict().items()
    }


def _say_type(path: Path, dtype: torch.dtype) -> None:
    """Write a type into a configuration."""
    config = json.loads(path.read_text(encoding="utf-8"))
    name = "torch_dtype" if "torch_dtype" in config else "dtype"
    config[name] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _size(text: str) -> str:
    """Return a size as transformers takes it.

    Raises:
        ConfigError: If it is none.
    """
    if not re.fullmatch(r"[1-9]\d*(?:\.\d+)?\s*[KMGT]B", text.strip(), re.IGNORECASE):
        raise ConfigError(f"--max-shard-size {text}: expected a size", "Example: 2GB or 500MB")
    return text.strip().upper().replace(" ", "")


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
