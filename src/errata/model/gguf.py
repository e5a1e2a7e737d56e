"""GGUF files: found, read and dequantised by transformers, and plain models afterwards.

llama.cpp's format holds quantised weights and the tokenizer in one file. transformers turns the
weights into ordinary matrices when it loads them; what it leaves behind says "quantised" and is
taken off here, so that the model can be edited, merged and saved like any other.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from errata.errors import ModelError
from errata.model.gguf_header import read_header

SUFFIX = ".gguf"
MAGIC = b"GGUF"


def split_source(model: str, gguf_file: str | None = None) -> tuple[str, str | None]:
    """Return the folder or Hub id to load from, and the name of the GGUF file in it, if any.

    Args:
        model: A GGUF file, a folder that holds one and no `config.json`, or anything else.
        gguf_file: Which file of a folder or Hub repository.

    Raises:
        ModelError: If the file is missing, is no GGUF file, or is one of several.
    """
    path = Path(model).expanduser()
    if path.suffix == SUFFIX and (path.exists() or model.count("/") != 1):
        if gguf_file is not None:
            raise ModelError(f"{model} is a GGUF file itself", "Leave --gguf-file out.")
        path, gguf_file = path.parent, path.name
    elif gguf_file is None and path.is_dir() and not (path / "config.json").is_file():
        there = sorted(file.name for file in path.glob(f"*{SUFFIX}"))
        if len(there) > 1:
            raise ModelError(
                f"{path} holds {len(there)} GGUF files: {', '.join(there[:5])}",
                f"Name one: --gguf-file {there[0]}, or --model {path / there[0]}",
            )
        gguf_file = there[0] if there else None
    if gguf_file is None:
        return model, None
    if path.is_dir():
        check(path / gguf_file)
        return str(path), gguf_file
    if path.suffix == SUFFIX or model.startswith((".", "/", "~")):
        raise ModelError(f"no such file: {path / gguf_file}", "Give a GGUF file that is there.")
    return model, gguf_file  # of a repository of the Hub


def check(path: Path) -> None:
    """Refuse what cannot become a model before transformers reads it.

    Raises:
        ModelError: If the file is missing, begins otherwise, is damaged or shorter than it says, or
            holds no tokenizer; or the reader is not installed.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(len(MAGIC))
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror or error}", "Give a GGUF file that is there."
        ) from None
    if begins != MAGIC:
        raise ModelError(
            f"{path} is no GGUF file: it begins with {begins!r}, not {MAGIC!r}",
            "It may be half-downloaded; fetch it again.",
        )
    need_reader()
    again = "It may be half-downloaded or damaged; fetch it again."
    try:
        header = read_header(path)
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} is no readable GGUF file: {error}", again) from None
    there = path.stat().st_size
    if there < header.bytes:
        raise ModelError(
            f"{path} is cut short: it has {there:,} bytes, its header tells of {header.bytes:,}",
            again,
        )
    if not header.tensors or not header.architecture:
        what = "weights" if header.architecture else "architecture"
        raise ModelError(f"{path} holds no {what}", "Give the GGUF file of a language model.")
    if "tokenizer.ggml.tokens" not in header.keys:
        raise ModelError(
            f"{path} holds no tokenizer", "Give a GGUF file with its tokenizer in it, or the model "
            "as a folder or Hub id.",
        )  # fmt: skip


def why_not(path: Path | None, model: str, error: Exception) -> tuple[str, str]:
    """Say why transformers did not make a model of a GGUF file, and what can be done.

    Args:
        path: The file, if it is here.
        model: What was asked for.
        error: What transformers raised.
    """
    import transformers

    text = str(error).strip().partition("\n")[0]
    if "architecture" in text and "not supported" in text:
        kind = read_header(path).architecture if path is not None else ""
        return (
            f"transformers {transformers.__version__} cannot read GGUF files of "
            f"{'the architecture ' + kind if kind else 'this architecture'}: {model}",
            "Load the original weights (a Hub id or folder) instead; a newer transformers may read "
            "more.",
        )
    return (
        f"cannot make a model of the GGUF file {model}: {text}",
        "It may be damaged, or of a kind that transformers does not read: fetch it again, or load "
        "the original weights (a Hub id or folder).",
    )


def need_reader() -> None:
    """Refuse to go on without the package that reads GGUF.

    Raises:
        ModelError: Says what to install.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading GGUF files needs the package gguf", "pip install 'errata[gguf]'")


def plain(model: Any) -> Any:
    """Take off a dequantised model what says that it is quantised; its weights are ordinary."""
    for holder, names in (
        (model, ("hf_quantizer", "quantization_method")),
        (model.config, ("quantization_config", "_is_quantized")),
    ):
        for name in names:
            if name in vars(holder):
                delattr(holder, name)
    model.is_quantized = False
    return model
