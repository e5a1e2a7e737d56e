"""Curves along sequences: perplexities of one size stand on a plain axis."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from errata.reporting.figures.trajectory import _paint


@pytest.mark.parametrize(("last", "scale"), [(13.2, "linear"), (400.0, "log")])
def test_perplexity_is_drawn_by_its_logarithm_where_it_grows_manifold(
    last: float, scale: str
) -> None:
    rows = [
        ("MEMIT", "perplexity", 0, 12.1, 1), ("MEMIT", "perplexity", 100, last, 1),
        ("MEMIT", "recall", 100, 0.9, 1),
    ]  # fmt: skip
    figure = Figure()
    _paint(figure, rows, ["MEMIT"])
    recall, perplexity = figure.axes[1], figure.axes[0]
    assert [axes.get_title() for axes in (perplexity, recall)] == [
        "perplexity", "recall of the edits so far (%)",
    ]  # fmt: skip
    assert perplexity.get_yscale() == scale
    assert recall.get_yscale() == "linear"
    assert [float(y) for y in np.asarray(perplexity.lines[0].get_ydata())] == [12.1, last]
