"""Folders of trained networks hold what docs/security.md says of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from tests.locate.samples import build
from tests.nets.samples import TRAINED, small, untrained

from errata.editors import get_editor
from errata.errors import ConfigError, ErrataError, ModelError
from errata.model.lm import LM
from errata.nets import weights


@pytest.fixture
def lm() -> LM:
    return build("gpt2", "float32")


@pytest.fixture
def folder(lm: LM, tmp_path: Path) -> Path:
    return written(lm, "ibke", tmp_path / "nets")


def written(lm: LM, name: str, folder: Path) -> Path:
    editor = small(name)
    settings = editor.config.model_dump(mode="json")
    network = untrained(editor, lm)
    return weights.save(folder, network, editor=name, settings=settings, lm=lm, card="")


def load(lm: LM, folder: Path, name: str = "ibke") -> Any:
    return get_editor(name, {"weights": str(folder)}).network(lm)


def config_of(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / weights.CONFIG
    config = json.loads(path.read_bytes())
    change(config)
    path.write_text(json.dumps(config))


def tensors_of(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors, and the checksum with them, as a stranger would."""
    path = folder / weights.WEIGHTS
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    packed = save(tensors)
    path.write_bytes(packed)
    config_of(folder, lambda config: config.update(sha256=hashlib.sha256(packed).hexdigest()))


@pytest.mark.parametrize("name", TRAINED)
def test_what_was_saved_is_loaded_and_its_shapes_are_known_beforehand(
    lm: LM, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(lm, name, tmp_path / name)
    compared: list[Path] = []
    compare = weights._compare

    def noted(own: Any, there: Any, path: Path) -> None:
        compared.append(path)
        compare(own, there, path)

    monkeypatch.setattr(weights, "_compare", noted)
    found = load(lm, folder, name).state_dict()
    assert len(compared) == 2  # before anything is allocated, and when it is loaded
    for key, tensor in load_file(folder / weights.WEIGHTS).items():
        torch.testing.assert_close(found[key], tensor.to(found[key].dtype))


def test_a_checksum_is_no_option(lm: LM, folder: Path) -> None:
    config_of(folder, lambda config: config.pop("sha256"))
    with pytest.raises(ModelError, match="sha256"):
        load(lm, folder)


def test_one_changed_byte_is_noticed(lm: LM, folder: Path) -> None:
    path = folder / weights.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="checksum"):
        load(lm, folder)


@pytest.mark.parametrize("width", [10**9, 10**18])
def test_settings_that_declare_more_than_is_there_take_no_memory(
    lm: LM, folder: Path, width: int
) -> None:
    config_of(folder, lambda config: config["settings"].update(d_m=width))
    with pytest.raises(ModelError, match=r"does not fit|cannot be made"):
        load(lm, folder)


def first_of(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name, tensor in tensors.items() if tensor.dtype == torch.float32)


def integers(tensors: dict[str, torch.Tensor]) -> None:
    name = first_of(tensors)
    tensors[name] = tensors[name].long()


def too_large(tensors: dict[str, torch.Tensor]) -> None:
    name = first_of(tensors)
    tensors[name] = torch.full_like(tensors[name], 1e300, dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "said"), [(integers, "holds torch.int64"), (too_large, "NaN or infinite")]
)
def test_tensors_of_another_type_are_refused(
    lm: LM, folder: Path, change: Callable[..., None], said: str
) -> None:
    tensors_of(folder, change)
    with pytest.raises(ModelError, match=said):
        load(lm, folder)


@pytest.mark.parametrize("file", [weights.WEIGHTS, weights.CONFIG])
def test_no_file_is_a_link_that_leads_out(lm: LM, folder: Path, file: str) -> None:
    outside = folder.parent / file
    (folder / file).rename(outside)
    (folder / file).symlink_to(outside)
    with pytest.raises(ErrataError, match="outside of its folder"):
        load(lm, folder)
    assert weights.is_trained_editor(folder) == (file == weights.WEIGHTS)


def test_the_best_networks_of_a_run_lie_in_it(lm: LM, folder: Path) -> None:
    run = folder.parent / "run"
    run.mkdir()
    (run / "best").symlink_to(folder)
    with pytest.raises(ConfigError, match="outside of its folder"):
        weights.locate(str(run))
    (run / "best").unlink()
    folder.rename(run / "best")
    assert load(lm, run) is not None


def test_pickles_are_no_weights(lm: LM, folder: Path) -> None:
    path = folder / weights.WEIGHTS
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        load(lm, folder)
