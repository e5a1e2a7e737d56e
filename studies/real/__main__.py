"""`python -m studies.real run`, then `page`: the study and its page.

`run` does all cells in order of value, one after another, and may be stopped and started again at
any time; `keep` keeps the records of the cell under way too; `tuned` keeps what `errata tune` found
(`--cache`); `page` writes docs/results-real.md from the kept records, whatever there is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.real import plan


def main() -> None:
    """Run a part of the study, or write the page."""
    from studies.real.run import Places, carry_out, default, keep_all, states

    parser = argparse.ArgumentParser(prog="python -m studies.real", description=__doc__)
    parser.add_argument("what", choices=("run", "keep", "tuned", "page", "list"))
    parser.add_argument(
        "--only", nargs="*", action="extend", default=[], help="names of cells, or beginnings"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/study-real"), help="run folders")
    parser.add_argument(
        "--data", type=Path, default=default("ERRATA_DATA", "data"), help="default $ERRATA_DATA"
    )
    parser.add_argument(
        "--models", type=Path, default=default("ERRATA_MODELS", "~/.cache/real-models"),
        help="folder with smollm2, gemma3 and qwen05; default $ERRATA_MODELS",
    )  # fmt: skip
    parser.add_argument(
        "--cache", type=Path, default=default("ERRATA_CACHE", "~/.cache/errata"),
        help="the cache that `errata tune` ran with; default $ERRATA_CACHE",
    )  # fmt: skip
    given = parser.parse_args()
    places = Places(given.folder, given.data.resolve(), given.models)
    cells = [
        cell
        for cell in plan.everything()
        if not given.only or any(cell.name.startswith(name) for name in given.only)
    ]
    if given.what == "list":
        print("\n".join(states(cells)))
    elif given.what == "run":
        carry_out(cells, places)
    elif given.what == "keep":
        keep_all(cells, places)
    elif given.what == "tuned":
        from studies.real.tuned import keep

        print("\n".join(keep(given.cache)))
    else:
        from studies.real.text import write_page

        write_page()


if __name__ == "__main__":
    main()
