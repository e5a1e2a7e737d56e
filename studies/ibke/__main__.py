"""`python -m studies.ibke run NETWORKS`, then `page`: trained networks evaluated, and the page.

`choose NETWORKS` compares rounds on records that are not tested.

NETWORKS is a folder that `errata train` wrote (recipes/ibke-smollm2.toml and
recipes/ibke-relations-smollm2.toml say how). The direct editors beside them are rows of
`studies.real`, on the same records.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.ibke.plan import LIMIT, NETWORKS


def main() -> None:
    """Evaluate networks, or write the page."""
    from studies.ibke.run import DTYPE, carry_out
    from studies.real.run import default

    parser = argparse.ArgumentParser(prog="python -m studies.ibke", description=__doc__)
    parser.add_argument("what", choices=("run", "choose", "page"))
    parser.add_argument("networks", nargs="?", type=Path, help="folder of the training run")
    parser.add_argument("--name", default="ibke", choices=list(NETWORKS), help="which they are")
    parser.add_argument("--limit", type=int, default=LIMIT, help="held-out records")
    parser.add_argument(
        "--data", type=Path, default=default("ERRATA_DATA", "data"), help="default $ERRATA_DATA"
    )
    parser.add_argument(
        "--models", type=Path, default=default("ERRATA_MODELS", "~/.cache/real-models"),
        help="folder with smollm2; default $ERRATA_MODELS",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", default=DTYPE, help="precision of the evaluation; float32 where bfloat16 is slow"
    )
    given = parser.parse_args()
    if given.what != "page" and given.networks is None:
        parser.error(f"{given.what} needs the folder of a training run")
    if given.what == "run":
        carry_out(given.name, given.networks, given.data, given.models, given.limit, given.dtype)
    elif given.what == "choose":
        from studies.ibke.choose import choose

        choose(given.name, given.networks, given.data, given.models)
    else:
        from studies.ibke.page import write_page

        write_page()


if __name__ == "__main__":
    main()
