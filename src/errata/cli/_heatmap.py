"""Heat maps of indirect effects: for a terminal, and as a picture."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.cli import _output
from errata.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from rich.table import Table

    from errata.tracing.effects import Trace

TITLES = {
    "hidden": "Hidden state after one block",
    "ffn": "FFN output",
    "attn": "Attention output",
}
NUMBERED = 14
"""Blocks up to which a terminal shows numbers; of deeper models it shows shades."""
SHADES = " ·░▒▓█"
# viridis at equal steps: brightness grows with the value, so it reads without colour as well
COLOURS = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
PICTURES = (".png", ".svg", ".pdf")


def title_of(trace: Trace, kind: str) -> str:
    """Return what is restored, in words."""
    wide = kind != "hidden" and trace.window > 1
    return TITLES[kind] + (f" of {trace.window} neighbouring blocks" if wide else "")


def table_of(trace: Trace, kind: str) -> Table:
    """Return the average effects of one kind, a row per role of token and a column per block."""
    from rich.text import Text

    from errata.tracing.effects import ROLES

    values = trace.mean(kind).tolist()
    blocks = len(values[0])
    top = max((x for line in values for x in line if not math.isnan(x)), default=0.0)
    title = f"{title_of(trace, kind)}, percent of probability regained"
    if blocks <= NUMBERED:
        names = [str(block) for block in range(blocks)]
        made = _output.table("block", *names, title=title, right=range(1, blocks + 1))
    else:
        scale = "".join(f"{block:<10}" for block in range(0, blocks, 10))[:blocks]
        made = _output.table("block", scale, "peak", "at", title=title, right=(2, 3))
        made.columns[1].overflow = "crop"
        made.columns[1].no_wrap = True
    for role, line in zip(ROLES, values, strict=True):
        known = [x for x in line if not math.isnan(x)]
        if blocks <= NUMBERED:
            cells = [_cell(f"{100 * x:5.1f}", x, top) if known else Text("–") for x in line]
            made.add_row(role, *cells)
        elif known:
            strip = Text.assemble(*(_cell(_shade(x, top), x, top) for x in line))
            best = max(range(blocks), key=lambda block: line[block])
            made.add_row(role, strip, f"{100 * line[best]:.1f}", str(best))
        else:
            made.add_row(role, "–", "–", "–")
    return made


def _shade(value: float, top: float) -> str:
    return SHADES[_step(value, top, len(SHADES))]


def _step(value: float, top: float, steps: int) -> int:
    return 0 if top <= 0 else max(0, min(steps - 1, math.floor(value / top * steps)))


def _cell(text: str, value: float, top: float) -> Any:
    from rich.text import Text

    step = _step(value, top, len(COLOURS))
    ink = "black" if step > len(COLOURS) // 2 else "white"
    return Text(text, style=f"{ink} on {COLOURS[step]}")


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be drawn before anything is computed.

    Raises:
        ConfigError: If the ending of the file is of no known format.
        MissingExtra: If matplotlib is not installed.
    """
    if path.suffix not in PICTURES:
        raise ConfigError(
            f"--out {path}: expected a folder or a file that ends in {', '.join(PICTURES)}"
        )
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise MissingExtra("pictures of heat maps", "matplotlib", "report") from None


def picture(trace: Trace, path: Path) -> bytes:
    """Draw one heat map per kind of state and return the file.

    Raises:
        MissingExtra: If matplotlib is not installed.
    """
    check_picture(path)
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    from errata.tracing.effects import ROLES, SUBJECT_LAST

    kinds = list(trace.effects)
    blocks = trace.mean(kinds[0]).shape[1]
    width = min(16.0, max(6.5, 2.6 + 0.55 * blocks))
    figure = Figure(figsize=(width, 2.35 * len(kinds) + 0.7), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{trace.model}: probability of the answer regained by restoring one clean state\n"
        f"mean over {len(trace)} known facts; clean {float(trace.clean.mean()):.2f}, "
        f"subject corrupted {float(trace.corrupted.mean()):.2f}",
        fontsize=11,
    )
    chosen = trace.choice()
    for number, kind in enumerate(kinds):
        axes = figure.add_subplot(len(kinds), 1, number + 1)
        mean = trace.mean(kind)
        top = max(float(mean.nan_to_num(0).max()), 1e-9)
        image = axes.imshow(
            mean.numpy(), aspect="auto", cmap="viridis", vmin=0.0, vmax=top, interpolation="nearest"
        )
        axes.set_title(title_of(trace, kind), fontsize=10)
        axes.set_yticks(range(len(ROLES)), ROLES, fontsize=8)
        step = 1 if blocks <= 20 else 2 if blocks <= 40 else 5
        axes.set_xticks(range(0, blocks, step))
        axes.tick_params(axis="x", labelsize=8)
        if number == len(kinds) - 1:
            axes.set_xlabel("block")
        if blocks <= NUMBERED:
            for role, line in enumerate(mean.tolist()):
                for block, value in enumerate(line):
                    if not math.isnan(value):
                        ink = "black" if value > 0.55 * top else "white"
                        text = f"{value:.2f}".replace("-0.00", "0.00")
                        axes.text(block, role, text, ha="center", va="center", color=ink, size=7)
        if kind == "ffn" and chosen is not None:
            axes.add_patch(_frame(chosen.layer, SUBJECT_LAST))
            axes.set_title(f"{title_of(trace, kind)} (framed: the choice)", fontsize=10)
        bar = figure.colorbar(image, ax=axes, pad=0.01)
        bar.set_label("regained", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    drawn = BytesIO()
    figure.savefig(drawn, format=path.suffix[1:])
    return drawn.getvalue()


def _frame(block: int, role: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((block - 0.5, role - 0.5), 1, 1, fill=False, edgecolor="#d55e00", linewidth=2)
