"""Numbers as people read them."""

from __future__ import annotations


def size(count: int) -> str:
    """Format a number of bytes (1 KB is 1024 bytes)."""
    value = float(count)
    for unit in ("B", "KB", "MB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GB"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: `1 edit`, `2 edits`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
