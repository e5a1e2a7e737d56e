"""The golden tests themselves: they run over every model that is there, and name none."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.golden.published import golden, golden_file, input_of, models

HERE = Path(__file__).parent
FILES = [*HERE.glob("test_golden_*.py"), HERE.parent / "evaluation" / "test_eval_golden.py"]


def test_no_golden_test_names_a_model() -> None:
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert not [name for name in ("tiny-gpt2", "tiny-llama", '"proto"') if name in text], file


def test_every_folder_of_a_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_SHARED", str(tmp_path))
    assert models() == ["no model"]
    for name in ("b", "a"):
        (tmp_path / "reference" / "models" / name).mkdir(parents=True)
    assert models() == ["a", "b"]


def test_what_a_model_lacks_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    with pytest.raises(pytest.skip.Exception, match=r"no golden output rome\.f64\.json of a"):
        golden(tmp_path, "rome", "a")
    with pytest.raises(pytest.skip.Exception, match="no golden output x of a"):
        golden_file(tmp_path, "a", "x")
    with pytest.raises(pytest.skip.Exception, match="no golden input x"):
        input_of(tmp_path, "x")
