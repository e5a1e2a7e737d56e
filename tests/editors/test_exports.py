"""What an editor says its patches can be exported as is what exporting does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.locate.samples import EDITS

from errata.editors import editors
from errata.editors.base import Editor
from errata.errors import PatchError
from errata.model.lm import LM
from errata.patch.export import to_lora, to_merged


@pytest.mark.parametrize("name", list(editors.all))
def test_patches_export_as_their_editor_says(
    name: str, tiny: Callable[..., LM], make: Callable[..., Editor], tmp_path: Path
) -> None:
    lm = tiny("qwen3")
    patch = make(name).edit_one(lm, EDITS[:1])
    allowed = editors.load(name).exports
    for form, export in (("lora", to_lora), ("merged", to_merged)):
        folder = tmp_path / form
        if form in allowed:
            export(lm, patch, folder)
            assert any(folder.glob("*.safetensors"))
            continue
        with pytest.raises(PatchError) as caught:
            export(lm, patch, folder)
        assert not folder.exists()
        assert len(caught.value.message) > 40  # says why
