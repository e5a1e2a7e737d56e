"""The heat maps of causal traces, drawn from the kept tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.real.plan import MODELS

KINDS = {"hidden": "hidden state after one block", "ffn": "FFN output"}


def draw(traces: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw one row of heat maps per model, and write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.3 * len(traces) + 0.3), layout="constrained", dpi=80)
    FigureCanvasAgg(figure)
    for line, found in enumerate(traces):
        for column, (kind, title) in enumerate(KINDS.items()):
            axes = figure.add_subplot(len(traces), len(KINDS), line * len(KINDS) + column + 1)
            values = [
                [float("nan") if x is None else x for x in role] for role in found["effects"][kind]
            ]
            top = max(x for role in values for x in role if x == x)
            image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0.0, vmax=top)
            wide = f" of {found['window']} blocks" if kind == "ffn" else ""
            axes.set_title(f"{MODELS[found['model']]}: {title}{wide}", fontsize=8)
            axes.set_yticks(range(len(found["roles"])), found["roles"], fontsize=6)
            axes.tick_params(axis="x", labelsize=6)
            figure.colorbar(image, ax=axes, pad=0.01).ax.tick_params(labelsize=6)
    figure.savefig(path, format="png", metadata={"Software": None})
