"""Trained networks as folders: `config.json`, `model.safetensors` and a card.

`config.json` names the editor, its settings and the base model's fingerprint; the card holds the
exact command, the data's hashes and the scores.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from errata import __version__
from errata.documents import Document, checked
from errata.errors import ConfigError, ErrataError, ModelError
from errata.model.weights import Identity, identity
from errata.store.files import sha256_of
from errata.store.folders import write_folder
from errata.untrusted import check_file, reachable, read_object
from errata.world.shipped import POCKET, is_shipped

if TYPE_CHECKING:
    from errata.model.lm import LM

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, CARD)

SHIPPED = Path(__file__).parent.parent / "world" / "pocket_editors"
"""Networks that come with the package, all for the pocket model."""


def is_trained_editor(folder: Path) -> bool:
    """Whether a folder holds the trained networks of an editor."""
    try:
        return "editor" in read_object(folder / CONFIG, within=folder)
    except (OSError, ValueError):
        return False


def find(editor: str, given: str | None, model: str) -> Path:
    """Return the folder of an editor's networks.

    Args:
        editor: Name of the editor.
        given: A folder, a Hub id, `pocket`, or None for those that come with the model.
        model: Name of the model to be edited.

    Raises:
        ConfigError: If there is none.
    """
    train = f"Train them: errata train {editor} --model {model} --data world --out DIR"
    if given is None and not is_shipped(model):
        raise ConfigError(
            f"{editor} needs trained networks for {model}",
            f"{train}, then: --set weights=DIR",
        )
    if given is None or is_shipped(given):
        folder = SHIPPED / editor
        if not (folder / CONFIG).is_file():
            raise ConfigError(f"no trained {editor} comes with the pocket model", train)
        return folder
    return locate(given, train)


def source(given: str | None) -> str:
    """Return what names networks from any folder: an absolute path, a Hub id or `pocket`."""
    if given is None:
        return POCKET
    path = Path(given).expanduser()
    return str(path.resolve()) if path.is_dir() else given


def locate(given: str, hint: str = "") -> Path:
    """Return the folder of networks that were named by a folder or a Hub id.

    Args:
        given: A folder of networks or of a training run, or a Hub id (`owner/name`).
        hint: What to type if nothing is there.

    Raises:
        ConfigError: If there is none.
    """
    hint = hint or "Expected a folder that `errata train` wrote, or a Hub id (owner/name)."
    with reachable(given, ConfigError):
        path = Path(given).expanduser()
        path.is_dir()
    if path.is_dir():
        best = path / "best"
        if (best / CONFIG).is_file():  # the folder of a training run
            if not best.resolve().is_relative_to(path.resolve()):
                raise ConfigError(
                    f"{best} is a link to {best.resolve()}, outside of its folder",
                    "Name that folder itself if its networks are meant.",
                )
            return best
        if (path / "lock").is_file() and not (path / WEIGHTS).is_file():
            raise ConfigError(
                f"the training run in {path} has kept no networks yet",
                "It keeps the first ones when it validates; --resume goes on with it.",
            )
        return path
    if given.startswith((".", "/", "~")) or given.count("/") != 1:
        raise ConfigError(f"no folder of trained networks at {given}", hint)
    return _download(given)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"no folder {name}, and no such networks from the Hub: {reason}",
            "Expected a folder, a Hub id (owner/name) or: pocket",
        ) from None


class _Config(Document):
    """What `config.json` of trained networks says."""

    editor: str
    settings: dict[str, Any]
    fingerprint: str
    model: str | None = None
    revision: str | None = None
    fingerprint_float16: str | None = None
    dtype: str | None = None
    sha256: str


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a folder of trained networks.

    Raises:
        ModelError: If it is missing or damaged.
    """
    path = folder / CONFIG
    try:
        config = read_object(path, within=folder)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise ModelError(
                f"{folder} holds no {CONFIG}", "Expected a folder that `errata train` wrote."
            ) from None
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}", "Train or download it again.") from None
    try:
        checked(_Config, config)
    except ValueError as error:
        raise ModelError(
            f"{path} does not describe a trained editor: {error}",
            "Expected a folder that `errata train` wrote.",
        ) from None
    return config


def read_card(folder: Path, editor: str, lm: LM) -> dict[str, Any]:
    """Return the configuration, having checked that it fits editor and model.

    Raises:
        ModelError: If it belongs to another editor or another base model.
    """
    config = read_config(folder)
    if config["editor"] != editor:
        raise ModelError(
            f"{folder} holds networks of {config['editor']}, not of {editor}",
            f"Use --editor {config['editor']}.",
        )
    base = Identity.recorded(config)
    if base is None or not base.same(identity(lm)):
        raise ModelError(
            f"the networks in {folder} were trained on {config.get('model')} "
            f"({base or 'unknown weights'}), not on {lm.name} ({identity(lm)})"
            + _why(config.get("shape"), _shape(lm)),
            f"Train them for this model: errata train {editor} --model {lm.name} …; or load the "
            f"weights they were trained on: --model {config.get('model')}",
        )
    return config


def _shape(lm: LM) -> dict[str, Any]:
    """Return what tells one architecture from another."""
    vocabulary, width = (int(n) for n in lm.embedding.shape)
    kind = str(getattr(lm.model.config, "model_type", "model"))
    return {"type": kind, "blocks": lm.n_layers, "width": width, "vocabulary": vocabulary}


def _why(theirs: Any, mine: Mapping[str, Any]) -> str:
    """Say what kind of other model it is, as far as the sizes tell; earlier cards have none."""
    if not isinstance(theirs, dict):
        return ""
    if theirs == mine:
        return (
            ": a model of the same shape with other weights, as another quantisation or release of "
            "one checkpoint has, or a copy tuned or edited since; its gradient factors are others"
        )
    sizes = "{type}, {blocks} blocks of width {width}, {vocabulary:,} tokens"
    try:
        return f": {sizes.format(**theirs)}, not {sizes.format(**mine)}"
    except (KeyError, ValueError, TypeError):  # written by hand
        return ""


def save(
    folder: Path,
    network: nn.Module,
    *,
    editor: str,
    settings: Mapping[str, Any],
    lm: LM,
    card: str,
    facts: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the networks of an editor; the old ones stay if anything goes wrong.

    Args:
        folder: Created if missing.
        network: The networks.
        editor: Name of the editor.
        settings: Its settings.
        lm: The base model.
        card: What stands in README.md.
        facts: Further JSON values for `config.json` (command, data, scores).
        dtype: Store floating-point parameters in this type; float64 statistics keep theirs.
    """
    from safetensors.torch import save as to_bytes

    tensors = {}
    for name, tensor in network.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if dtype is not None and tensor.dtype == torch.float32 and tensor.numel() > 1:
            tensor = tensor.to(dtype)
        tensors[name] = tensor
    config = {
        "editor": editor,
        "settings": {k: v for k, v in settings.items() if k != "weights"},
        "model": lm.name,
        "revision": lm.revision,
        **identity(lm).record(),
        "shape": _shape(lm),
        "errata": __version__,
        **(facts or {}),
    }
    packed = to_bytes(tensors)
    config["sha256"] = hashlib.sha256(packed).hexdigest()
    files = {
        WEIGHTS: packed,
        CARD: card.encode(),
        CONFIG: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    write_folder(folder, files, force=True)
    return folder


def check_declared(build: Callable[[], nn.Module], folder: Path) -> None:
    """Refuse settings that declare other tensors than the file holds, before any is allocated.

    Args:
        build: Makes the networks; called on a device that has shapes and no memory. Networks that
            cannot be made there are compared when they are loaded.
        folder: Where they are kept.

    Raises:
        ModelError: Names what does not fit.
    """
    path = folder / WEIGHTS
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is copied into shapes goes nowhere
            own = _shapes(build().state_dict())
    except (NotImplementedError, ErrataError):
        return
    except (RuntimeError, OverflowError, TypeError) as error:
        if "meta" in str(error):
            return
        raise ModelError(
            f"{folder / CONFIG} declares networks that cannot be made: {error}",
            "Train or download it again.",
        ) from None
    from safetensors import safe_open

    with _opening(folder), safe_open(path, "pt") as file:
        names = file.keys()
        _compare(own, {name: tuple(file.get_slice(name).get_shape()) for name in names}, path)


def load_into(network: nn.Module, folder: Path) -> None:
    """Load saved tensors into networks of the same settings.

    Raises:
        ModelError: If the file is missing or damaged, does not fit, or holds NaN.
    """
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    expected = read_config(folder)["sha256"]
    with _opening(folder):
        if sha256_of(path) != expected:
            raise ValueError(f"it does not match the checksum in {CONFIG}")
        tensors = load_file(path)
    own = network.state_dict()
    _compare(_shapes(own), _shapes(tensors), path)
    converted = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise ModelError(
                f"{path}: {name} holds {tensor.dtype}; expected {own[name].dtype}",
                "Train or download it again.",
            )
        # once converted: what is finite in float64 need not be in float32
        if tensor.is_floating_point() and not bool(torch.isfinite(converted[name]).all()):
            raise ModelError(f"{path}: {name} holds NaN or infinite values", "Train it again.")
    network.load_state_dict(converted)


@contextmanager
def _opening(folder: Path) -> Iterator[None]:
    """Name the file of weights that is missing, elsewhere or damaged."""
    from safetensors import SafetensorError

    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{folder} holds no {WEIGHTS}", "Train or download it again.")
    try:
        check_file(path, within=folder)
        yield
    except (SafetensorError, ValueError, OSError) as error:
        raise ModelError(f"{path} is damaged: {error}", "Train or download it again.") from None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _compare(
    own: Mapping[str, tuple[int, ...]], there: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    strange = sorted(own.keys() ^ there.keys()) or sorted(k for k in own if own[k] != there[k])
    if strange:
        raise ModelError(
            f"{path} does not fit the settings in {CONFIG}: {', '.join(strange[:3])}",
            "Train or download it again.",
        )
