"""The one place where transformers reads a model: nothing runs that nobody allowed.

Code that a repository brings is refused unless it was asked for (never a question on standard
input), weights are read as safetensors only, and a folder is looked at before transformers is: a
pipe would keep it waiting, and a configuration may declare more than any machine holds.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from errata.errors import ErrataError, ModelError
from errata.model.compat import quiet_transformers
from errata.untrusted import read_object, refuse_special

LAYERS = 10_000
"""Blocks and experts that a configuration may declare: each costs time before a weight is read."""

PER_BYTE = 8
"""Numbers that a byte of a checkpoint may hold at most: no quantisation goes below one bit."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
"""Endings of weights that are not read: most of them run code when they are."""

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_experts",
           "num_local_experts", "n_routed_experts")  # fmt: skip
_WIDTHS = ("hidden_size", "n_embd", "d_model")
_LENGTHS = ("vocab_size", "intermediate_size", "n_inner", "moe_intermediate_size")


def read(
    kind: Any, source: str, *, trust: bool = False, weights: bool = True, **options: Any
) -> Any:
    """Read a model, a tokenizer or a configuration with one of transformers' Auto classes.

    Args:
        kind: The class.
        source: Folder or Hub id.
        trust: Let code of the repository run.
        weights: Whether it has weights, which have to be safetensors.
        options: Further arguments of `from_pretrained`.

    Raises:
        ModelError: If the folder is none that may be read. What transformers raises is left to the
            caller; see `damage`.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        check_folder(folder, weights=weights and "gguf_file" not in options)
    if weights and "gguf_file" not in options:
        options.setdefault("use_safetensors", True)
    with quiet_transformers(), _no_collections():
        return kind.from_pretrained(source, trust_remote_code=trust, **options)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Leave objects that hold each other alone for a while.

    What is read first imports half of transformers and of torch: half a million objects that stay,
    which the collector would go through again and again, a second or two in all.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """Refuse a model folder that holds pipes, pickles in place of weights, or damaged documents.

    Raises:
        ModelError: Says which.
    """
    try:
        names = sorted(folder.iterdir())
        for path in names:
            refuse_special(path)
        config = read_object(folder / "config.json") if (folder / "config.json").exists() else {}
        for path in names:
            if path.name.endswith(".safetensors.index.json"):
                _check_index(path)
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ModelError(
            f"{folder} is a damaged model: {error}", "Fetch or save the model again."
        ) from None
    tensors = [path for path in names if path.suffix == ".safetensors"]
    pickles = [path.name for path in names if path.suffix in PICKLES]
    if weights and pickles and not tensors:
        raise ModelError(
            f"{folder} holds its weights as {pickles[0]}, which can run code when it is read; "
            "errata reads safetensors only",
            "Save the model again with a current transformers (model.save_pretrained(DIR)), on a "
            "machine where you trust it.",
        )
    if tensors:
        _check_sizes(folder, config, sum(path.stat().st_size for path in tensors))


def _check_index(path: Path) -> None:
    files = read_object(path).get("weight_map", {})
    if not isinstance(files, dict):
        raise ValueError(f"{path.name}: weight_map is no object")
    for name in {str(name) for name in files.values()}:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{path.name} names weights outside of its folder: {name!r}")


def _check_sizes(folder: Path, config: Mapping[str, Any], size: int) -> None:
    """Refuse a configuration that declares more than its weights can hold."""
    for table in (config, *(own for own in config.values() if isinstance(own, dict))):
        for name in _COUNTS:
            count = table.get(name)
            if isinstance(count, int) and count > LAYERS:
                raise ModelError(f"{folder}: {name} is {count:,}; expected at most {LAYERS:,}")
        widths = [w for w in map(table.get, _WIDTHS) if isinstance(w, int)]
        for name in _LENGTHS:
            length = table.get(name)
            if not isinstance(length, int) or not widths or length <= 0:
                continue
            if length * max(widths) > PER_BYTE * max(size, 1):
                raise ModelError(
                    f"{folder}: config.json declares a matrix of {length:,} × {max(widths):,}, and "
                    f"its weights have {size:,} bytes",
                    "config.json and the weights belong to different models; fetch both again.",
                )


@contextmanager
def damage(what: str, hint: str | None = None) -> Iterator[None]:
    """Say of whatever transformers raises over a model that it cannot be loaded.

    It raises what it likes over damaged files: TypeErrors, errors of Rust, bare exceptions. What
    says that memory ran out goes through as it is.

    Args:
        what: What cannot be loaded.
        hint: What to do.

    Raises:
        ModelError: With the first line of the reason.
    """
    try:
        yield
    except (ErrataError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{what} brings code of its own, which errata does not run", hint
            ) from error
        raise ModelError(f"{what} cannot be loaded: {reason(error)}", hint) from error


def reason(error: BaseException) -> str:
    """Return the first line of an error, with its kind where the line alone would say little."""
    text = str(error).strip().partition("\n")[0]
    plain = isinstance(error, OSError | ImportError | RuntimeError) or (
        isinstance(error, ValueError) and len(text) > 20
    )
    return text if plain and text else f"{type(error).__name__}: {text}"
