"""`python -m studies.locate run`, then `page`: the study and its page."""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.locate import plan


def main() -> None:
    """Run a part of the study, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.locate", description=__doc__)
    parser.add_argument("what", choices=("run", "page", "list"))
    parser.add_argument(
        "--only", nargs="*", action="extend", default=[], help="names of runs, or their beginnings"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[], help="all, if none is given")
    parser.add_argument("--all", action="store_true", help="also runs that the page does without")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/study-locate"), help="where unfinished runs go"
    )
    given = parser.parse_args()
    runs = [
        run
        for run in (plan.grid() if given.all else plan.everything())
        if not given.only or any(run.name.startswith(name) for name in given.only)
        if not given.seeds or run.seed in given.seeds
    ]
    if given.what == "list":
        print("\n".join(run.name for run in runs))
    elif given.what == "run":
        from studies.locate.run import carry_out

        carry_out(runs, given.folder)
    else:
        from studies.locate.text import write_page

        write_page()


if __name__ == "__main__":
    main()
