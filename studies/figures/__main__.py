"""`python -m studies.figures draw [NAME…]`, then `page`: pictures, numbers, and their page.

Figures 2 to 5b are drawn from scores that other studies keep. The others look into runs: make them
with `errata sweep recipes/RECIPE.toml`, and name the folder they lie in with --runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.figures.plan import PICTURES_OF_THE_PAGE


def main() -> None:
    """Draw figures, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.figures", description=__doc__)
    parser.add_argument("what", choices=("draw", "page"))
    names = [one.figure for one in PICTURES_OF_THE_PAGE]
    parser.add_argument("figures", nargs="*", help=f"of {', '.join(names)}; none: all")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the sweeps")
    given = parser.parse_args()
    if wrong := [name for name in given.figures if name not in names]:
        parser.error(f"no figure {wrong[0]!r}; there are {', '.join(names)}")
    if given.what == "draw":
        from studies.figures.draw import draw

        for one in PICTURES_OF_THE_PAGE:
            if not given.figures or one.figure in given.figures:
                draw(one, given.runs)
    else:
        from studies.figures.page import write_page

        write_page()


if __name__ == "__main__":
    main()
