"""Where a block norms the FFN's output, values are found behind the edited matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from errata.case import Edit
from errata.editors import get_editor
from errata.editors.fitting import fitted
from errata.model.lm import LM
from errata.model.passes import capture, module_at

Tiny = Callable[..., LM]


@pytest.mark.parametrize("editor", ["memit", "alphaedit", "emmet", "memit_seq"])
def test_values_are_found_behind_the_matrix_there(tiny: Tiny, editor: str) -> None:
    lm = tiny("gemma2")
    made: Any = fitted(get_editor(editor, model=lm.name), lm)
    assert made.found_at == ("ffn",)
    assert made.edited_layers(lm) == (0,)
    assert "norm or scale" in made.settings_from
    own: Any = fitted(get_editor(editor, {"value_at": "block"}, model=lm.name), lm)
    assert own.found_at == ("block",)
    assert fitted(get_editor(editor, model="x"), tiny("llama")).found_at == ("block",)  # type: ignore[attr-defined]


def test_the_edited_matrix_says_the_value_that_was_found(
    tiny: Tiny, make: Callable[..., Any]
) -> None:
    """`(W + D) k = v*` with a vanishing weight of ordinary keys, and `v*` is behind `W`."""
    lm = tiny("gemma2", "float64")
    edit = Edit("the cat sat on the", " mat", "cat")
    editor = make(
        "memit", layers=(1,), value_at="ffn", mom2_weight=1e-9, contexts="bare", stop_loss=0.0
    )
    patch = editor.edit_one(lm, [edit])
    contexts = editor.prepared(lm).contexts
    wanted = editor.values(lm, [edit], contexts, 1, [-1]).target("ffn")[0]
    row = lm.row_of(edit, subject=True)
    with patch.applied(lm):
        _, (said,) = capture(lm, lm.batch([row], [0]), outputs=[module_at(lm, 1, "ffn")])
    torch.testing.assert_close(said[0, row.subject_last].to(wanted), wanted, rtol=1e-4, atol=1e-6)
