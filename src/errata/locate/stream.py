"""Whether what an FFN's last matrix says reaches the residual stream as it is.

```
 W k ──────────────────────▶ + ──▶ stream     GPT-2, Llama, Qwen, Mistral …: what is missing
                                              behind the block is missing behind W
 W k ──▶ norm, or a factor ▶ + ──▶ stream     Gemma 2 and 3, OLMo 2, Granite: it is not
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from errata.model.experts import label
from errata.model.hooks import after, bare, hooked
from errata.model.passes import capture, first, module_at, with_first
from errata.model.tokens import Row

if TYPE_CHECKING:
    from errata.model.lm import LM

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Relative error up to which a block counts as adding its FFN's output; 0.1 in half precision."""


def added_as_it_is(lm: LM) -> bool:
    """Whether blocks add the output of the FFN's last matrix unchanged: tried at the middle one.

    True as well of experts, whose outputs are weighed by their router in any case.
    """
    layer = lm.n_layers // 2
    return lm.spec.routed(layer) is not None or ffn_adds_to_block(lm, layer)


def ffn_adds_to_block(lm: LM, layer: int) -> bool:
    """Whether moving the FFN's output moves the block's output by the same vector.

    True for plain residual blocks, false where a norm follows the FFN (Gemma 2). Established by
    moving it once, in the model without any patch, so no list of architectures is needed.
    """
    return lm.once(("ffn adds to block", label(lm, layer)), lambda: _adds(lm, layer))


@torch.no_grad()
def _adds(lm: LM, layer: int) -> bool:
    vocabulary = lm.embedding.shape[0]
    ids = tuple((7 * n + 1) % vocabulary for n in range(6))  # padding may be embedded as zeros
    batch = lm.batch([Row(ids, (5,), (), 6)], [0])
    ffn, block = module_at(lm, layer, "ffn"), module_at(lm, layer, "block")
    with bare(lm.model):
        _, (answer, hidden) = capture(lm, batch, outputs=[ffn, block])
        # as large as the stream: what half precision rounds off there may exceed an FFN's output
        shift = torch.full_like(answer, float(hidden.abs().max()))
        with hooked(lm, after(ffn, lambda m, args, out: with_first(out, first(out) + shift))):
            _, (moved,) = capture(lm, batch, outputs=[block])
    tolerance = TOLERANCE.get(hidden.dtype, 0.1)
    return bool(((moved - hidden - shift).abs().max() / shift.abs().max()) < tolerance)
