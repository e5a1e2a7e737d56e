"""LoRA adapters as PEFT writes them, read as patches; whatever is broken is named."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from errata.case import Edit
from errata.documents import Document, checked
from errata.errors import DataError, PatchError
from errata.model.weights import Identity
from errata.patch.card import read_record
from errata.patch.changes import LowRank
from errata.patch.patch import Patch
from errata.untrusted import check_file, read_json

if TYPE_CHECKING:
    from errata.model.lm import LM

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
HEAD = "base_model.model."
"""What PEFT puts in front of the paths of modules."""
_NOT_EXPRESSED = {
    "use_dora": "DoRA",
    "bias": "trained biases",
    "lora_bias": "biases of its own",
    "modules_to_save": "saved modules",
    "alora_invocation_tokens": "tokens that switch it on",
    "layer_replication": "layers put in twice",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "parameters that are no module's weight",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal factors",
    "arrow_config": "routing among adapters",
    "velora_config": "VeLoRA",
    "monteclora_config": "sampled weights",
    "kasa_config": "a base model that was cut down",
    "lora_ga_config": "a start that changed the base model",
}
"""Fields of PEFT's configuration by which an adapter is more than `W += scale * B A`."""
_APPLIED = frozenset(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision "
    "inference_mode r target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out "
    "use_rslora init_lora_weights layers_to_transform layers_pattern rank_pattern alpha_pattern "
    "megatron_config megatron_core loftq_config eva_config corda_config qalora_group_size "
    "runtime_config ensure_weight_tying".split()
)
"""Fields that are read, or say nothing that the tensors do not say."""
_REBASED = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Starting points for which PEFT takes the first `B A` out of the base model's weights."""
_FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<which>[AB])(?:\.[^.]+)?\.weight")


def from_lora(lm: LM, folder: str | Path) -> Patch:
    """Read a PEFT LoRA folder as a patch of `lm`.

    The edits of an adapter that errata exported come along, and it is refused on another model
    than the one it was made for.

    Raises:
        PatchError: If it is no LoRA folder, does not fit the model, changes nothing, or uses a
            feature that is more than `W += scale * B A` (DoRA, trained biases, saved modules).
    """
    folder = Path(folder)
    config, tensors = read_adapter(folder)
    record = read_record(folder)
    pairs = {
        path: (A, B * _scaling(config, path, A.shape[0]))
        for path, (A, B) in sorted(pairs_of(folder, config, tensors).items())
    }
    return patch_of(lm, pairs, folder, record)


def patch_of(
    lm: LM,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    source: Path,
    record: Mapping[str, Any] | None,
) -> Patch:
    """Return the factors of an adapter as a patch.

    Args:
        lm: The base model.
        pairs: `A` and `B` of every adapted module, scaled.
        source: Where they come from.
        record: What errata wrote about the edits when it exported them, if it did.

    Raises:
        PatchError: If they do not fit the model, or change nothing.
    """
    changes = [LowRank(path, B, A) for path, (A, B) in sorted(pairs.items())]
    if not any(bool((change.B != 0).any() and (change.A != 0).any()) for change in changes):
        raise PatchError(
            f"{source} changes nothing: all its products B A are zero",
            "Was it saved before it was trained?",
        )
    patch = Patch.for_model(lm, changes, editor="lora", config={"folder": source.name})
    if record is not None:
        patch = _recorded(patch, record, source)
    patch.check(lm)
    patch.check_finite()
    return patch


def recorded_patch(record: Mapping[str, Any], source: Path) -> Patch:
    """Return the edits that the record of an export names, and what was asked of them.

    It changes nothing: what is known of it can be read without a model.

    Raises:
        PatchError: If the record cannot be read.
    """
    edits = _edits(record, source)
    results = record.get("results") or ()
    aftermath = record.get("aftermath") or {}
    if len(results) not in (0, len(edits)) or not isinstance(aftermath, dict):
        raise PatchError(f"{source}: what errata.json tells of the edits cannot be read")
    return Patch(edits=edits, results=tuple(results), aftermath=aftermath)


def _edits(record: Mapping[str, Any], source: Path) -> tuple[Edit, ...]:
    try:
        return tuple(Edit(**entry) for entry in record["edits"])
    except (TypeError, ValueError, DataError) as error:
        raise PatchError(
            f"{source}: the edits in errata.json cannot be read: {error}",
            "Export again, or remove the file.",
        ) from None


def _recorded(patch: Patch, record: Mapping[str, Any], folder: Path) -> Patch:
    """Give a patch the edits that the record of its export names, and the model it is for."""
    edits = _edits(record, folder)
    base = Identity.recorded(record)
    known = {} if base is None else base.record()
    if known and record.get("model"):
        known["model"] = str(record["model"])
    if isinstance(record.get("made"), str):
        known["made"] = record["made"]
    return replace(patch, edits=edits, meta={**patch.meta, **known})


class _Config(Document):
    """Types of what is read of a configuration; what values mean is said where they are used."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    use_rslora: bool | None = None
    fan_in_fan_out: bool | None = None
    bias: str | None = None


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the tensors of a PEFT LoRA folder.

    Raises:
        PatchError: If there is none, or it holds more than `W += scale * B A`.
    """
    try:
        config: Any = read_json(folder / CONFIG_NAME, within=folder)
        check_file(folder / WEIGHTS_NAME, within=folder)
        tensors = load_file(folder / WEIGHTS_NAME)
    except (OSError, ValueError, SafetensorError) as error:
        raise PatchError(f"{folder} is not a readable LoRA folder: {error}") from error
    if not isinstance(config, dict):
        raise PatchError(f"{folder / CONFIG_NAME} holds no JSON object")
    checked(_Config, config, PatchError)
    if config.get("peft_type") != "LORA":
        raise PatchError(f"{folder} is a {config.get('peft_type')} adapter; expected LORA")
    for name, why in _NOT_EXPRESSED.items():
        value = config.get(name)
        if value and not (name == "bias" and value == "none"):
            raise PatchError(
                f"{folder} uses {why} ({name}: {value!r:.60}), which a patch cannot express",
                "Merge it with PEFT instead.",
            )
    unknown = [name for name in config if name not in _APPLIED | _NOT_EXPRESSED.keys()]
    for name in filter(config.get, unknown):
        raise PatchError(
            f"{folder}: {CONFIG_NAME} has {name}: {config[name]!r:.60}, which is not known here",
            "Merge it with PEFT; or, if the field does not change what is computed, remove it.",
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_REBASED):
        raise PatchError(
            f"{folder} was started by {start}, which changed the base model's own weights: on the "
            "base model as it is, the adapter means something else",
            "Convert it with PEFT first (save_pretrained with path_initial_model_for_weight_"
            "conversion), or merge it with PEFT.",
        )
    for name in ("alpha_pattern", "rank_pattern"):
        if not isinstance(config.get(name) or {}, dict):
            raise PatchError(f"{folder}: {name} is no object")
    return config, tensors


def pairs_of(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of every adapted module.

    Raises:
        PatchError: If there is none, half of a pair is missing, a tensor is none of a pair, or a
            rank is not the one that the configuration says.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for name in sorted(tensors):
        match = _FACTOR.fullmatch(name)
        if match is None or tensors[name].ndim != 2 or not tensors[name].is_floating_point():
            raise PatchError(
                f"{folder} holds an unexpected tensor {name} of shape {tuple(tensors[name].shape)}",
                "A patch takes the factors lora_A and lora_B of projections only.",
            )
        halves.setdefault(match["path"].removeprefix(HEAD), {})[match["which"]] = tensors[name]
    if not halves:
        raise PatchError(f"{folder} holds no tensor: it would change nothing")
    found = {}
    for path, half in halves.items():
        if len(half) != 2:
            (there,) = half
            other = "B" if there == "A" else "A"
            raise PatchError(
                f"{folder} holds lora_{there} of {path} but not lora_{other}",
                "It is half-written, or was cut; export it again.",
            )
        declared = _of_module(config, "rank_pattern", path, config.get("r", 8))
        if not isinstance(declared, int) or isinstance(declared, bool) or declared < 1:
            raise PatchError(f"{folder}: the rank r of {path} is {declared!r}; expected 1 or more")
        if half["A"].shape[0] != declared or half["B"].shape[1] != declared:
            raise PatchError(
                f"{folder}: r says rank {declared} for {path}, but its factors have rank "
                f"{half['A'].shape[0]} (A) and {half['B'].shape[1]} (B)",
                f"The scaling would be wrong: mend r in {CONFIG_NAME}, or export again.",
            )
        found[path] = half["A"], half["B"]
    return found


def _of_module(config: Mapping[str, Any], name: str, path: str, otherwise: Any) -> Any:
    """Return what a pattern says for one module; patterns are regular expressions, as in PEFT."""
    for pattern, value in (config.get(name) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        except re.error as error:
            raise PatchError(f"{name}: {pattern!r} is not a regular expression: {error}") from None
    return otherwise


def _scaling(config: Mapping[str, Any], path: str, rank: int) -> float:
    """Return PEFT's factor in front of `B A` for one module.

    Raises:
        PatchError: If it is no finite number.
    """
    alpha = _of_module(config, "alpha_pattern", path, config.get("lora_alpha", 8))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise PatchError(f"lora_alpha of {path} is {alpha!r}; expected a finite number")
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
