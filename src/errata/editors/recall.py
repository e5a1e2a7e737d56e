"""Where a model recalls what it knows of a subject: what `auto` means for a layer."""

from __future__ import annotations

from errata.model.lm import LM
from errata.tracing.trace import cached_choice


def gated(lm: LM, layer: int) -> bool:
    """Whether a block's FFN has a gate (two input matrices, or one of twice the width)."""
    if not lm.spec.ffn_in[layer]:  # experts, which are gated
        return True
    width = sum(site.d_out for site in lm.spec.ffn_in[layer])
    return width >= 2 * lm.site(layer).d_in


def recall_rule(lm: LM) -> str:
    """Say what `recall_layer` follows on this model."""
    traced = cached_choice(lm)
    if traced is None:
        return "rule of thumb by depth"
    return f"traced on {traced.facts} facts of {traced.data} ({traced.id})"


def recall_layer(lm: LM) -> int:
    """Block where subjects are recalled: what `auto` means for ROME and its relatives.

    Where the model was traced (`errata trace`), the peak of the FFN's effect. Else a rule read off
    the published tables: 0.345 of the depth for plain FFNs (GPT2-M 8 of 24, L 12 of 36, XL 17 of
    48, NeoX 15 of 44) and one sixth for gated ones (5 of 28 to 32).
    """
    traced = cached_choice(lm)
    if traced is not None:
        return traced.layer
    share = 1 / 6 if gated(lm, lm.n_layers // 2) else 0.345
    return min(lm.n_layers - 1, round(share * lm.n_layers))
