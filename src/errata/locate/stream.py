"""Whether what an FFN's last matrix says reaches the residual stream as it is.

```
 W k ──────────────────────▶ + ──▶ stream     GPT-2, Llama, Qwen, Mistral …: what is missing
                                              behind the block is missing behind W
 W k ──▶ norm, or a factor ▶ + ──▶ stream     Gemma 2 and 3, OLMo 2, Granite: it is not
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from errata.model.hooks import after, bare, hooked
from errata.model.passes import capture, first, module_at, with_first
from errata.model.tokens import Row

if TYPE_CHECKING:
    from errata.model.lm import LM

TOLERANCE = 0.05


def added_as_it_is(lm: LM) -> bool:
    """Whether the block adds the output of the FFN's last matrix unchanged; tried once a model.

    True as well of experts, whose outputs are weighed by their router in any case.
    """
    return lm.once("the FFN's output is added as it is", lambda: _tried(lm))


@torch.no_grad()
def _tried(lm: LM) -> bool:
    """Double the matrix' output in one block of the bare model and see what the block adds."""
    layer = lm.n_layers // 2
    if lm.spec.routed(layer) is not None:
        return True
    vocabulary = lm.embedding.shape[0]
    row = Row(tuple((7 * n + 1) % vocabulary for n in range(6)), (5,), (), 6)
    module, block = module_at(lm, layer, "ffn"), module_at(lm, layer, "block")

    def doubled(module: Any, args: Any, out: Any) -> Any:
        return with_first(out, 2 * first(out))

    with bare(lm.model):
        _, (own, once) = capture(lm, lm.batch([row], [0]), outputs=[module, block])
        with hooked(lm, after(module, doubled)):
            _, (twice,) = capture(lm, lm.batch([row], [0]), outputs=[block])
    missed = (twice - once - own).float().norm() / own.float().norm().clamp(min=1e-12)
    return bool(missed < TOLERANCE)
