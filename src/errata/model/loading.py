"""Loading models from the Hub, a folder, a GGUF file or the package."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch

from errata.arguments import expect, path_of
from errata.config import did_you_mean
from errata.errors import ConfigError, ErrataError, ModelError
from errata.model import gguf, named
from errata.model.compat import dequantised
from errata.model.lm import LM
from errata.model.pretrained import read, reason
from errata.model.products import Compute, warn_if_slow
from errata.store.cache import folder_name
from errata.store.files import cache_root
from errata.untrusted import reachable
from errata.world.shipped import POCKET, is_shipped, pocket_path

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways of accelerate to spread a model over devices."""

MODULES = {"optimum-quanto": "optimum", "compressed-tensors": "compressed_tensors"}
"""Names to import packages by, where they are others."""

BY_NAME = (POCKET, *named.MODELS)
"""Models that need no path: shipped with errata, or fetched once."""


Device = str | Mapping[str, Any] | None

QUANTISERS = {"bitsandbytes": "bitsandbytes", "gptq": "gptqmodel", "awq": "gptqmodel",
              "torchao": "torchao", "hqq": "hqq", "quanto": "optimum-quanto",
              "compressed-tensors": "compressed-tensors"}  # fmt: skip
"""Packages that read quantised weights, by what configurations call their kinds."""


def _map_of(device: Device) -> str | dict[str, Any] | None:
    """Return the map of accelerate that a device stands for, if it is one.

    Raises:
        ModelError: If accelerate is not installed.
    """
    if device is None or (isinstance(device, str) and device not in MAPS):
        return None
    if importlib.util.find_spec("accelerate") is None:
        raise ModelError(
            f"device={device!r}: spreading a model needs the package accelerate",
            "pip install accelerate, or name one device: cpu, cuda, cuda:1",
        )
    return device if isinstance(device, str) else dict(device)


def _pick_device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"unknown device {device!r}", "Examples: cpu, cuda, cuda:1, auto"
        ) from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: no CUDA device is available", "Use --device cpu")
    try:
        usable = chosen.type != "meta" and torch.zeros(1, device=chosen).item() == 0.0
    except (RuntimeError, NotImplementedError, AssertionError, ImportError, AttributeError):
        usable = False
    if not usable:
        raise ConfigError(
            f"--device {device}: there is no such device here that can compute",
            "Examples: cpu, cuda, cuda:1, auto",
        )
    return chosen


def _source(model: str) -> str:
    """Return the folder or Hub id to load from.

    Raises:
        ModelError: If it looks like a path that is not there, or like neither.
    """
    if is_shipped(model):
        return str(pocket_path())
    if model in named.MODELS and not Path(model).is_dir():
        return str(named.folder_of(model))
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path} holds no config.json",
                "Expected a saved transformers model, or a GGUF file.",
            )
        return str(path)
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_local or path.exists():
        raise ModelError(
            f"no model folder at {model}",
            f"Give a folder, a GGUF file, a Hub id, or: {', '.join(BY_NAME)}",
        )
    return model


def _located(model: str, gguf_file: str | None) -> tuple[str, str | None]:
    """Return the folder or Hub id to load from, and the GGUF file in it, if it is one."""
    with reachable(model, ModelError):
        source, gguf_file = gguf.split_source(model, gguf_file)
        return (_source(source) if gguf_file is None else source), gguf_file


def load(
    model: str = "pocket",
    *,
    dtype: str | torch.dtype | None = None,
    device: Device | torch.device = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    max_tokens: int | None = None,
    sites: Mapping[str, str] | None = None,
    gguf_file: str | None = None,
    compute: Compute = "float32",
    ready: Callable[[], None] | None = None,
) -> LM:
    """Load a model and its tokenizer.

    Args:
        model: `pocket` (shipped with errata), `smollm2` (fetched once), a local folder, a GGUF file
            or a folder with one (dequantised: an ordinary model), or a Hub id.
        dtype: `float64`, `float32`, `bfloat16` or `float16`; default float32 on CPU, the
            checkpoint's own elsewhere.
        device: For example `cpu` or `cuda:0`; default the first GPU if there is one. `auto` spreads
            the model over what is there and offloads what does not fit, by accelerate; so does a
            map from modules to devices (`cpu`, `disk`, 0 …).
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Allow code from the Hub repository to run. Off unless asked for.
        max_tokens: Budget of padded tokens per forward pass.
        sites: Overrides for the architecture probe.
        gguf_file: Which GGUF file of a folder or of a repository on the Hub.
        compute: What the passes of an optimisation multiply in: `float32`, `bfloat16`, or `auto`:
            bfloat16 if the model is large enough and this machine multiplies it fast.
        ready: Called before the weights are read, once everything cheap has been checked: what else
            is needed may be looked for there.

    Raises:
        ModelError: If it cannot be found or read, or holds NaN weights.
        ConfigError: If dtype or device is unknown.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = str(path_of(model, "the model")) if not isinstance(model, str) else model
    if isinstance(device, torch.device):
        device = str(device)
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype is not None:
        expect(dtype, str, "dtype", "its name")
    if device is not None:
        expect(device, (str, Mapping), "device", "its name, or a map of modules to devices")
    spread = _map_of(device)
    where = _pick_device(None if spread is not None else str(device) if device else None)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}", did_you_mean(dtype, DTYPES))
    if compute not in get_args(Compute):
        raise ConfigError(f"unknown compute {compute!r}", did_you_mean(compute, get_args(Compute)))
    chosen = DTYPES[dtype] if dtype else torch.float32 if where.type == "cpu" else "auto"
    source, gguf_file = _located(model, gguf_file)
    options: dict[str, Any] = {"revision": revision, "trust": trust_remote_code}
    weights: dict[str, Any] = {"dtype": chosen}
    if gguf_file is not None:
        gguf.need_reader()
        options["gguf_file"] = gguf_file
        weights = {"dtype": torch.float32 if chosen == "auto" else chosen, **dequantised()}
    if spread is not None:
        weights |= {"device_map": spread, "offload_folder": str(_offload_folder(model))}
    if ready is not None:
        ready()
    with _understood(model, gguf_file, source):
        if gguf_file is None and spread is None and _quantiser(source, options) is not None:
            weights["device_map"] = {"": str(where)}  # cannot be moved afterwards
        network, told = read(
            AutoModelForCausalLM, source, **weights, **options, output_loading_info=True
        )
        tokenizer = read(AutoTokenizer, source, weights=False, **options)
        tokenizer("The capital", truncation=False, verbose=False)  # some damage shows only here
    _refuse_gaps(model, told)
    if gguf_file is not None:
        gguf.plain(network)
    if spread is None and not getattr(network, "is_quantized", False):
        network.to(where)
    lm = LM(
        network,
        tokenizer,
        name=model,
        revision=revision,
        max_tokens=max_tokens,
        sites=sites,
        compute=compute,
    )
    lm.check_finite()
    warn_if_slow(lm)
    return lm


@contextmanager
def _understood(model: str, gguf_file: str | None, source: str) -> Iterator[None]:
    """Say in a sentence what reading a model has raised.

    Raises:
        ModelError: Names the model, and the reason as far as it is known.
    """
    try:
        yield
    except (ErrataError, MemoryError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(*_why_not(model, error, gguf_file, source)) from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if gguf_file is not None and isinstance(error, Exception):
            raise ModelError(*_why_not(model, error, gguf_file, source)) from error
        if "safetensors" in type(error).__module__ or "SafetensorError" in type(error).__name__:
            raise ModelError(
                f"the weights of {model!r} cannot be read: {error}", "The file may be half-written."
            ) from error
        if "ignore_mismatched_sizes" in str(error):
            raise ModelError(
                f"the weights of {model!r} have other shapes than its configuration asks for",
                "config.json and the weights belong to different models; fetch both again.",
            ) from error
        raise ModelError(
            f"cannot load model {model!r}: {reason(error)}",
            "Its configuration or tokenizer is damaged, or of another release; fetch it again.",
        ) from error


def _quantiser(source: str, options: Mapping[str, Any]) -> str | None:
    """Return the kind of quantisation that a checkpoint names, if it is quantised.

    Raises:
        ModelError: If the package that reads it is not installed.
    """
    from transformers import AutoConfig

    given: Any = getattr(
        read(AutoConfig, source, weights=False, **options), "quantization_config", None
    )
    if given is None:
        return None
    given = given if isinstance(given, dict) else given.to_dict()
    kind = str(given.get("quant_method", "")).rpartition(".")[2]
    package = QUANTISERS.get(kind)
    if package is not None and importlib.util.find_spec(MODULES.get(package, package)) is None:
        bits = next((bits for bits in (4, 8) if given.get(f"load_in_{bits}bit")), given.get("bits"))
        raise ModelError(
            f"{source!r} is quantised with {kind}{f' to {bits} bits' if bits else ''}, and the "
            f"package {package} is not installed",
            f"pip install {package}, or load the original weights.",
        )
    return kind


def _offload_folder(model: str) -> Path:
    """Return where accelerate may keep weights that do not fit and lie in no safetensors file."""
    return cache_root() / "offload" / folder_name(model)


def _refuse_gaps(model: str, told: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights: transformers draws them at random.

    Raises:
        ModelError: Names some of them.
    """
    gaps = sorted(told.get("missing_keys") or ())
    if gaps:
        shown = ", ".join(gaps[:3]) + (" …" if len(gaps) > 3 else "")
        raise ModelError(
            f"{model!r} lacks {len(gaps)} of the weights that its configuration asks for: {shown}",
            "The checkpoint is incomplete, or of another kind of model; fetch it again.",
        )


def _why_not(model: str, error: Exception, gguf_file: str | None, source: str) -> tuple[str, str]:
    if gguf_file is not None:
        path = Path(source) / gguf_file
        return gguf.why_not(path if path.is_file() else None, model, error)
    text = str(error).strip().partition("\n")[0]
    if "trust_remote_code" in str(error):
        return (
            f"{model!r} brings code of its own, which errata does not run unasked",
            "If you trust its authors: --trust-remote-code",
        )
    if "safetensors" in text and "does not appear to have" in text:
        return (
            f"{model!r} has no weights as safetensors, and errata reads nothing else: {text}",
            "Other formats can run code when they are read; save the model again as safetensors.",
        )
    if "Unrecognized configuration class" in text or "Unrecognized model" in text:
        return f"{model!r} is not a causal language model: {text}", "Use a decoder-only model."
    close = difflib.get_close_matches(model, BY_NAME, 1)
    if close:
        return f"cannot load model {model!r}: {text}", f"Did you mean {close[0]!r}?"
    return (
        f"cannot load model {model!r}: {text}",
        "Give a Hub id (check spelling and network), a local folder, a GGUF file, or: "
        + ", ".join(BY_NAME),
    )
