"""`python -m studies.sequences run`, then `page`: the study and its page."""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.sequences import plan


def main() -> None:
    """Run a part of the study, or write the page."""
    from studies.real.run import default

    parser = argparse.ArgumentParser(prog="python -m studies.sequences", description=__doc__)
    parser.add_argument("what", choices=("run", "page", "list"))
    parser.add_argument(
        "--only", nargs="*", action="extend", default=[], help="names of runs, or their beginnings"
    )
    parser.add_argument(
        "--data", type=Path, default=default("ERRATA_DATA", "data"), help="default $ERRATA_DATA"
    )
    parser.add_argument(
        "--networks", type=Path, default=Path("runs/ibke-smollm2"),
        help="folder with the training runs ibke and mend of recipes/ibke-smollm2.toml",
    )  # fmt: skip
    given = parser.parse_args()
    runs = [
        run
        for run in plan.runs()
        if not given.only or any(run.name.startswith(name) for name in given.only)
    ]
    if given.what == "list":
        print("\n".join(run.name for run in runs))
    elif given.what == "run":
        from studies.sequences.run import Places, carry_out

        carry_out(runs, Places(given.data.resolve(), given.networks.resolve()))
    else:
        from studies.sequences.page import write_page

        write_page()


if __name__ == "__main__":
    main()
