"""`errata figure`: figures of the paper from run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import _output
from errata.cli._options import ForceFlag, JsonFlag

EXAMPLES = (
    "errata figure scatter runs/table2-pocket --out figures",
    "errata figure latents runs/ibke-latents-pocket --out figures",
    "errata figure variants runs/ibke-ablation-pocket --out figures",
)


def figure(
    name: Annotated[
        str,
        typer.Argument(
            metavar="scatter|latents|variants|domains|criteria",
            help="scatter: generality against locality, all editors and models; latents: grid of"
            " l_m and beta; variants: bars by metric and data set; domains: heat maps by domain;"
            " criteria: generality by criteria and hops.",
        ),
    ],
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, sweep folders, or folders above them."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where NAME.png, .svg and .csv go.")
    ] = Path("figures"),
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Draw a figure from finished runs: PNG and SVG, and its numbers as CSV beside them."""
    from errata.reporting import figures

    with _output.status("reading runs"):
        written = figures.figure(name, runs, out, force=force)
    if json:
        _output.print_json({"figure": name, "files": written})
        return
    names = ", ".join(path.name for path in written)
    _output.out().print(f"{out}/: {names}", soft_wrap=True)
