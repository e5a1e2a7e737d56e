"""What a command is pointed at: a patch, an adapter or a model, and the model it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.cli._options import ModelOptions, typed
from errata.cli._output import note
from errata.errors import ConfigError, ModelError, PatchError
from errata.untrusted import read_object

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch

PATCH, ADAPTER, GGUF, MODEL = "patch", "adapter", "gguf", "model"
_FILES = {
    PATCH: "patch.json",
    ADAPTER: "adapter_config.json",
    GGUF: "adapter.gguf",
    MODEL: "config.json",
}


def kind_of(folder: str | Path) -> str | None:
    """Return what a folder or file is: one of the kinds above; None if it is none of them."""
    path = Path(folder).expanduser()
    try:
        if path.suffix == ".gguf" and path.is_file():
            return GGUF if _is_adapter(path) else None
        return next((kind for kind, name in _FILES.items() if (path / name).is_file()), None)
    except OSError:  # a name that is too long
        return None


def _is_adapter(path: Path) -> bool:
    """Whether a GGUF file is an adapter, and not a model."""
    from errata.model.gguf_header import read_header

    try:
        return read_header(path).texts.get("general.type") == "adapter"
    except (OSError, ValueError):
        return False


def given(model: ModelOptions) -> bool:
    """Return whether `--model` was typed, rather than left at its default."""
    told = typed("model")
    return model.model != ModelOptions.model if told is None else told


def load_base(
    model: ModelOptions,
    named: object,
    revision: object,
    what: str | Path,
    ready: Callable[[], None] | None = None,
) -> LM:
    """Load the base model of a patch or an adapter: the one of `--model`, else the one it names.

    Args:
        model: The options of the command.
        named: The model that the patch names.
        revision: Its revision.
        what: The patch, for messages.
        ready: Called before the weights are read.

    Raises:
        ModelError: If it cannot be loaded; where the name came from the patch, says how to name
            another place.
    """
    if given(model) or not isinstance(named, str) or not named:
        return model.load(ready)
    own = model.revision or (revision if isinstance(revision, str) else None)
    try:
        return replace(model, model=named, revision=own).load(ready)
    except ModelError as error:
        raise ModelError(
            f"the base model of {what} cannot be loaded: {error.message}",
            "If the same model lies elsewhere here: --model FOLDER (its weights are compared).",
        ) from None


def patch_and_model(target: Path, model: ModelOptions) -> tuple[Patch, LM]:
    """Load a patch or an adapter, and its base model.

    Raises:
        PatchError: If there is none, it is broken, or it is for another model.
        ModelError: If the model cannot be loaded.
    """
    from errata.patch import Patch

    if kind_of(target) in (ADAPTER, GGUF):
        return adapter_and_model(target, model)
    patch = Patch.load(target)
    patch.check_finite()
    lm = load_base(model, patch.meta.get("model"), patch.meta.get("revision"), target)
    patch.check(lm)
    return patch, lm


def adapter_and_model(folder: Path, model: ModelOptions) -> tuple[Patch, LM]:
    """Load an adapter as a patch, and its base model.

    Raises:
        PatchError: If there is none, it is broken, or it does not fit the model.
        ConfigError: If neither the adapter nor `--model` names a model.
        ModelError: If the model cannot be loaded.
    """
    if folder.suffix == ".gguf" or kind_of(folder) == GGUF:
        return _gguf_and_model(folder, model)
    from errata.patch.adapter import from_lora, read_adapter

    config, _ = read_adapter(folder)  # before the model is loaded for nothing
    named = config.get("base_model_name_or_path")
    if not given(model) and not (isinstance(named, str) and named):
        raise ConfigError(f"{folder} names no base model", "Add --model NAME")
    lm = load_base(model, named, config.get("revision"), folder)
    patch = from_lora(lm, folder)
    if given(model) and isinstance(named, str) and named and not patch.edits:
        # nothing but its name says what it was trained on: another model of that shape fits as well
        own, theirs = (name.rstrip("/").rpartition("/")[2].lower() for name in (lm.name, named))
        if own != theirs:
            note(f"{folder} says it is for {named}; it is read for {lm.name}")
    return patch, lm


def _gguf_and_model(source: Path, model: ModelOptions) -> tuple[Patch, LM]:
    """Load an adapter of llama.cpp as a patch; its file names no base model, a record may."""
    from errata.patch.gguf_adapter import adapter_file, base_named, check_adapter, from_gguf

    path = adapter_file(source)
    check_adapter(path)
    named = base_named(path)
    if not given(model) and not named:
        raise ConfigError(f"{source} names no base model", "Add --model NAME")
    lm = load_base(model, named, None, source)
    return from_gguf(lm, path), lm


def patch_document(folder: Path) -> dict[str, Any]:
    """Return `patch.json` as it stands; read after the patch itself was.

    Raises:
        PatchError: If it cannot be read.
    """
    try:
        return read_object(folder / "patch.json", within=folder)
    except (OSError, ValueError) as error:
        raise PatchError(f"{folder} is not a readable patch: {error}") from None
