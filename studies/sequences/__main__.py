"""`python -m studies.sequences run`, then `page`: the study and its page."""

from __future__ import annotations

import argparse

from studies.sequences import plan


def main() -> None:
    """Run a part of the study, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.sequences", description=__doc__)
    parser.add_argument("what", choices=("run", "page", "list"))
    parser.add_argument("--only", nargs="*", default=[], help="names of runs, or their beginnings")
    given = parser.parse_args()
    runs = [
        run
        for run in plan.runs()
        if not given.only or any(run.name.startswith(name) for name in given.only)
    ]
    if given.what == "list":
        print("\n".join(run.name for run in runs))
    elif given.what == "run":
        from studies.sequences.run import carry_out

        carry_out(runs)
    else:
        from studies.sequences.page import write_page

        write_page()


if __name__ == "__main__":
    main()
