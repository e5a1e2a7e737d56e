"""`python -m studies.table2 run`, then `page`: the sweep's tables and their page.

The files of CounterFact, zsRE and MQuAKE are looked for in $ERRATA_DATA; see the recipe.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import errata
from studies.table2.page import ROOT, TABLES, page_text, write_page

RECIPE = ROOT / "recipes" / "table2-pocket.toml"
FOLDER = Path("runs/table2-pocket")


def main() -> None:
    """Run the sweep and keep its tables, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.table2", description=__doc__)
    parser.add_argument("what", choices=("run", "page", "show"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the sweep")
    given = parser.parse_args()
    if given.what == "run":
        sweep = [sys.executable, "-m", "errata", "sweep", str(RECIPE), "--out", str(given.folder)]
        subprocess.run(sweep, check=True)
        made = errata.report(given.folder)
        TABLES.mkdir(exist_ok=True)
        for name, form in (("table.md", "markdown"), ("table.csv", "csv")):
            (TABLES / name).write_text(made.text(form), encoding="utf-8")
    if given.what == "show":
        print(page_text())
    else:
        write_page()


if __name__ == "__main__":
    main()
