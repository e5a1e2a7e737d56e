"""`python -m studies.lifelong run`, then `page`: the study and its page.

`run` does all cells in order of value, one after another, and may be stopped and started again at
any time; `remove` takes one edit of the longest sequence back; `ability` measures general ability
along it (needs lm-eval); `keep CELL --from RUN` takes a finished run folder of `errata eval` as a
cell; `page` writes docs/results-lifelong.md from the kept records, whatever there is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.lifelong import plan


def main() -> None:
    """Run a part of the study, keep a run, or write the page."""
    from studies.lifelong.run import Places, carry_out, default, keep, states

    parser = argparse.ArgumentParser(prog="python -m studies.lifelong", description=__doc__)
    parser.add_argument("what", choices=("run", "remove", "ability", "keep", "page", "list"))
    parser.add_argument("cell", nargs="?", help="with keep: name of the cell")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        help="with keep: the run folder; with remove: a patch of all edits",
    )
    parser.add_argument(
        "--only", nargs="*", action="extend", default=[], help="names of cells, or beginnings"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/study-lifelong"))
    parser.add_argument(
        "--data", type=Path, default=default("ERRATA_DATA", "data"), help="default $ERRATA_DATA"
    )
    given = parser.parse_args()
    cells = [
        cell
        for cell in plan.cells()
        if not given.only or any(cell.name.startswith(name) for name in given.only)
    ]
    if given.what == "list":
        print("\n".join(states(cells)))
    elif given.what == "run":
        carry_out(cells, Places(given.folder, given.data.resolve()))
    elif given.what == "remove":
        from studies.lifelong.removal import FORMS, MODELS, take_back_of

        for own in given.only or [f"{model}-{name}" for model in MODELS for name in FORMS]:
            model, _, name = own.partition("-")
            take_back_of(model, name, given.data.resolve(), given.folder, given.source)
    elif given.what == "ability":
        from studies.lifelong.ability import TASKS, along

        along("ultraedit", given.only or TASKS, given.data.resolve())
    elif given.what == "keep":
        named = {cell.name: cell for cell in plan.cells()}
        if given.cell not in named or given.source is None:
            parser.error(f"keep CELL --from RUN, CELL one of: {', '.join(named)}")
        keep(named[given.cell], given.source)
    else:
        from studies.lifelong.page import write_page

        write_page()


if __name__ == "__main__":
    main()
