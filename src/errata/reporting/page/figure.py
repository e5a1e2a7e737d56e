"""Generality against locality as SVG in the page: a point per editor, lines of equal F1."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from errata.printable import one_line
from errata.reporting.scores import Score
from errata.reporting.tables import Comparison

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
SIZE, LEFT, TOP = 300, 44, 12
"""Pixels of the plane, and what stands left of it and above it."""

# Okabe and Ito's colours, told apart with colour blindness, and on white and black alike
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a")
SHAPES = ("circle", "square", "diamond", "up", "down")


def svg(table: Comparison) -> str:
    """Return the figure of a comparison; nothing where no row has both rates."""
    rows = [(row.label, row.balance) for row in table.rows if row.balance is not None]
    if not rows:
        return ""
    width, height = LEFT + SIZE + 190, TOP + SIZE + 44
    parts = [
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" class=plane '
        'aria-label="generality against locality, in percent">',
        f'<rect x="{LEFT}" y="{TOP}" width="{SIZE}" height="{SIZE}" class=frame />',
        *_contours(),
        *_axes(),
    ]
    for number, (label, own) in enumerate(rows):
        colour = COLOURS[number % len(COLOURS)]
        shape = SHAPES[number % len(SHAPES)]
        x, y = _x(own.generality.value), _y(own.locality.value)
        name = escape(one_line(label))
        parts += _bars(own.generality, own.locality, colour)
        parts.append(
            f'<g fill="{colour}">{_mark(shape, x, y)}<title>{name}: generality '
            f"{100 * own.generality.value:.1f}, locality {100 * own.locality.value:.1f}, "
            f"F1 {100 * own.f1.value:.1f}</title></g>"
        )
        at = TOP + 10 + 17 * number
        parts.append(
            f'<g fill="{colour}">{_mark(shape, LEFT + SIZE + 42, at)}</g>'
            f'<text x="{LEFT + SIZE + 54}" y="{at + 4}">{name}</text>'
        )
    parts.append("</svg></figure>")
    return "".join(parts)


def _x(value: float) -> float:
    return round(LEFT + SIZE * value, 1)


def _y(value: float) -> float:
    return round(TOP + SIZE * (1 - value), 1)


def _contours() -> Iterator[str]:
    for level in LEVELS:
        # F1 = 2 G L / (G + L)  <=>  L = F1 G / (2 G - F1), which is 1 at G = F1 / (2 - F1)
        first = level / (2 - level)
        steps = [first + (1 - first) * n / 40 for n in range(41)]
        points = " ".join(f"{_x(g)},{_y(level * g / (2 * g - level))}" for g in steps)
        yield f'<polyline points="{points}" class=contour />'
        yield f'<text x="{_x(1) + 3}" y="{_y(first) + 3}" class=faint>F1 {100 * level:.0f}</text>'


def _axes() -> Iterator[str]:
    for tick in (0, 25, 50, 75, 100):
        yield (
            f'<text x="{_x(tick / 100)}" y="{TOP + SIZE + 15}" text-anchor="middle" '
            f"class=faint>{tick}</text>"
        )
        yield (
            f'<text x="{LEFT - 5}" y="{_y(tick / 100) + 3}" text-anchor="end" '
            f"class=faint>{tick}</text>"
        )
    yield (
        f'<text x="{LEFT + SIZE / 2}" y="{TOP + SIZE + 34}" text-anchor="middle">generality (%)'
        "</text>"
    )
    middle = TOP + SIZE / 2
    yield (
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
        "locality (%)</text>"
    )


def _bars(generality: Score, locality: Score, colour: str) -> Iterator[str]:
    x, y = _x(generality.value), _y(locality.value)
    lines = []
    if generality.interval is not None:
        low, high = generality.interval
        lines.append((_x(low), y, _x(high), y))
    if locality.interval is not None:
        low, high = locality.interval
        lines.append((x, _y(low), x, _y(high)))
    for x1, y1, x2, y2 in lines:
        yield f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" />'


def _mark(shape: str, x: float, y: float) -> str:
    if shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="5" />'
    if shape == "square":
        return f'<rect x="{x - 4.5}" y="{y - 4.5}" width="9" height="9" />'
    around = {
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "up": ((0, -6), (6, 5), (-6, 5)),
        "down": ((0, 6), (6, -5), (-6, -5)),
    }[shape]
    return f'<polygon points="{" ".join(f"{x + dx},{y + dy}" for dx, dy in around)}" />'
