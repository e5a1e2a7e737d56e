"""Parameters of the networks of trained editors, from widths alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from errata.sweeping.backbones import Backbone

SERAC = {"small": 125e6, "router": 109e6}
"""OPT-125M as counterfactual model and MPNet as classifier, as in the paper's baseline."""

LAYERS = {"mend": 3, "ke": 3, "malmen": 6}
"""Edited blocks as published; three for the others."""

ALL_MATRICES = ("mend", "ke")
"""Editors that by default edit the FFN's other matrices too."""

DEFAULT_D_M, DEFAULT_L_M, DEFAULT_WIDTH = 1024, 10, 1920


def ibke_matrix(
    d: int, settings: Mapping[str, Any], *, biases: bool = True, matrices: int = 1
) -> int:
    """Return the parameters of IBKE's network for one matrix.

    Without biases `4 d_m² + 6 D d_m + (l_m + 1) d_m + 1`: three attentions (queries, keys, values),
    latents, residual, gate and the edit learning rate. Biases add `9 d_m + D + 1`. The ablations
    leave parts out, errata's own extensions add theirs.

    Args:
        d: `D`, input and output width of the matrix together.
        settings: Settings of the editor; those missing have the paper's values.
        biases: Whether linear maps have biases, as they do.
        matrices: Number of edited matrices, which parts of the network may see together.
    """
    together = settings.get("together", "none")
    seen = d * matrices if together in {"latents", "both"} else d
    token = d * matrices if together in {"tokens", "both"} else d
    d_m, l_m = settings.get("d_m", DEFAULT_D_M), settings.get("l_m", DEFAULT_L_M)
    context = d_m * d_m + 2 * seen * d_m + 3 * d_m * biases  # latents look at signals
    gather = d * d_m + 2 * d_m * d_m + 3 * d_m * biases  # tokens look at latents
    count = l_m * d_m + context + gather + d_m * d + d * biases + 1
    if settings.get("bottleneck", True):
        count += context
    if settings.get("scaling", True):
        count += d_m + biases
    path = settings.get("token_path", 0)
    if path:
        count += (token + d) * path + path + d
        count += d_m * path if settings.get("token_latent", True) else 0
    # self-attention among the latents: three projections, two norms, and a network of twice d_m
    count += settings.get("latent_layers", 0) * (7 * d_m * d_m + (4 + 3 + 3) * d_m)
    count += 2 * (settings.get("rank") or 0) * (d_m + 1)
    return count + (d if settings.get("mirror", False) else 0)


def identity_network(d: int, modes: int, settings: Mapping[str, Any]) -> int:
    """Return the parameters of MEND's network for `modes` matrices of one shape.

    `V`, `U` and a bias per layer, scale and shift per layer and matrix, and its learning rate.
    """
    rank, layers = settings.get("width", DEFAULT_WIDTH), settings.get("n_layers", 2)
    if settings.get("nonlinear", "mend") == "mlp":
        return 2 * d * rank + rank + d + 2 * modes * d + modes
    return layers * (2 * d * min(rank, d) + d + 2 * modes * d) + modes


def ke_networks(d: int, count: int, hidden: int, settings: Mapping[str, Any]) -> int:
    """Return the parameters of KE's text encoder and of its `count` conditioners."""
    lstm, condition = settings.get("lstm", 512), settings.get("condition", 768)
    width, outputs = settings.get("width", 512), 2 * d + 1
    encoder = 2 * 4 * lstm * (hidden + lstm + 2) + (2 * lstm + 1) * condition
    # weight normalisation keeps a norm beside every row
    return encoder + count * (width * (condition + 2) + outputs * (width + 2))


def serac_networks(settings: Mapping[str, Any], model: Backbone) -> int:
    """Return the parameters of SERAC's two networks: copies of the model's blocks, or published."""
    block = 4 * model.hidden**2 + (2 + model.gated) * model.hidden * model.inner
    total = 0.0
    for name, published in SERAC.items():
        kind, own, blocks = str(settings.get(name, "")).partition("own:")
        total += block * len(blocks.split(",")) if own and not kind else published
    return int(total)


def edited_layers(editor: str, settings: Mapping[str, Any], model: Backbone) -> Sequence[int]:
    """Return the blocks that a trained editor edits: those asked for, else as published."""
    given = settings.get("layers")
    if isinstance(given, int):
        given = (given,)
    if isinstance(given, Sequence) and not isinstance(given, str):
        return tuple(given)
    count = min(LAYERS.get(editor, 3), model.layers)
    first = model.layers - count
    if editor == "ibke":
        first = 15 if model.layers == 48 else min(6, first)
    return range(first, first + count)


def network_parameters(editor: str, settings: Mapping[str, Any], model: Backbone) -> int:
    """Return the parameters of an editor's networks on a model; 0 if it has none."""
    d, n = model.signal, len(edited_layers(editor, settings, model))
    every = _all_matrices(editor, settings)
    if editor == "ibke":
        count = matrices(editor, settings, model)
        return count * ibke_matrix(d, settings, matrices=count)
    if editor == "serac":
        return serac_networks(settings, model)
    if editor == "ke":
        return ke_networks(d, matrices(editor, settings, model), model.hidden, settings)
    if editor not in ("mend", "malmen"):
        return 0
    # by orientation: out of the FFN, and into it (twice if gated); `d` is the same for both
    shapes = [n, n * (1 + model.gated)] if every else [n]
    marks = d * sum(shapes) if settings.get("mirror", False) else 0
    if not settings.get("shared", True):
        return sum(shapes) * identity_network(d, 1, settings) + marks
    return sum(identity_network(d, modes, settings) for modes in shapes) + marks


def matrices(editor: str, settings: Mapping[str, Any], model: Backbone) -> int:
    """Return how many matrices a trained editor edits."""
    n = len(edited_layers(editor, settings, model))
    return n * (2 + model.gated) if _all_matrices(editor, settings) else n


def _all_matrices(editor: str, settings: Mapping[str, Any]) -> bool:
    return settings.get("matrices", "all" if editor in ALL_MATRICES else "out") == "all"
