"""`python -m studies.pocket run`, then `frontier`, then `page`: the study and its page."""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.pocket import plan


def main() -> None:
    """Run a part of the study, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.pocket", description=__doc__)
    parser.add_argument("what", choices=("run", "frontier", "page", "ship", "list"))
    parser.add_argument(
        "--only", nargs="*", action="extend", default=[], help="names of runs, or their beginnings"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/study-pocket"), help="where checkpoints go"
    )
    given = parser.parse_args()
    runs = [
        run
        for run in plan.everything()
        if not given.only or any(run.name.startswith(name) for name in given.only)
    ]
    if given.what == "list":
        print("\n".join(run.name for run in runs))
    elif given.what == "run":
        from studies.pocket.run import carry_out

        carry_out(runs, given.folder)
    elif given.what == "frontier":
        from studies.pocket.run import carry_out_frontiers

        carry_out_frontiers(runs, given.folder)
    elif given.what == "ship":
        from studies.pocket.ship import ship

        ship(given.folder)
    else:
        from studies.pocket.text import write_page

        write_page()


if __name__ == "__main__":
    main()
