"""Checkpoints: everything a run needs to go on as if it had never stopped.

Written beside its place and moved there whole, so that a killed run or a full disk leaves the
previous one. safetensors and JSON only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errata.errors import RunError
from errata.store.files import write_atomically
from errata.untrusted import check_file, parse

FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Steps done.
        best: Lowest validation loss so far; None before the first validation.
        best_step: Step it was found at.
        seconds: Time spent training, over all sessions.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    seconds: float = 0.0


def save(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    facts: Mapping[str, Any],
) -> None:
    """Write a checkpoint.

    Args:
        folder: Folder of the run.
        network: The networks, with the normalisers' statistics.
        optimizer: Its state is kept in full.
        progress: How far the run has come.
        facts: What has to be the same when the run goes on (model, data, settings).

    Raises:
        ErrataError: If it cannot be written; the previous checkpoint is still there.
    """
    from safetensors.torch import save as to_bytes

    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    state = optimizer.state_dict()
    for number, values in state["state"].items():
        tensors |= {f"optimizer.{number}.{k}": torch.as_tensor(v) for k, v in values.items()}
    tensors["rng"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    about = {"progress": asdict(progress), "facts": dict(facts), "groups": state["param_groups"]}
    write_atomically(folder / FILE, to_bytes(plain, metadata={"about": json.dumps(about)}))


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Return the facts of a folder's checkpoint; None if there is none.

    Raises:
        RunError: If it is damaged.
    """
    if not (folder / FILE).is_file():
        return None
    return _about(folder / FILE)["facts"]


def load(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
) -> Progress:
    """Put networks, optimiser and random state back to where the checkpoint was written.

    Raises:
        RunError: If the checkpoint is damaged, or was made with other settings, data, layers or
            another model; names what differs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / FILE
    about = _about(path)
    _same(path, about["facts"], facts)
    try:
        tensors = load_file(path)
        return _put_back(about, tensors, network, optimizer)
    except (SafetensorError, ValueError, OSError, KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"{path} is damaged: {error}", "Start anew: --force") from error


def _put_back(
    about: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Progress:
    network.load_state_dict(_under(tensors, "network."))
    flat = _under(tensors, "optimizer.")
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": about["groups"]})
    torch.set_rng_state(tensors["rng"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return Progress(**about["progress"])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _about(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        check_file(path, within=path.parent)
        with safe_open(path, "pt") as handle:
            about = parse((handle.metadata() or {})["about"], finite=True)
        if not isinstance(about["facts"], dict) or not _is_progress(about["progress"]):
            raise ValueError("it does not say how far the run has come")
        return about
    except (TypeError, SafetensorError, KeyError, ValueError, OSError) as error:
        raise RunError(f"{path} is damaged: {error}", "Start anew: --force") from None


def _is_progress(found: Any) -> bool:
    """Whether a document holds the fields of `Progress`, each a number of its kind."""
    if not isinstance(found, dict) or found.keys() != asdict(Progress()).keys():
        return False
    counts = all(type(found[name]) is int and found[name] >= 0 for name in ("step", "best_step"))
    numbers = (found["seconds"], 0.0 if found["best"] is None else found["best"])
    return counts and all(type(number) in (int, float) for number in numbers)


def _same(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    for key in sorted(there.keys() | now.keys()):
        if there.get(key) != now.get(key):
            raise RunError(
                f"{path} was made with another {key}: {_short(there.get(key), now.get(key))}",
                "Use the same command to resume, another --out, or --force to start anew.",
            )


def _short(there: Any, now: Any) -> str:
    if isinstance(there, dict) and isinstance(now, dict):
        differ = [k for k in sorted(there.keys() | now.keys()) if there.get(k) != now.get(k)]
        return ", ".join(f"{k} was {there.get(k)!r}, is {now.get(k)!r}" for k in differ[:3])
    return f"was {there!r}, is {now!r}"
