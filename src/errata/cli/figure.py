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
    "errata figure relations runs/ibke-inside-pocket --out figures",
    "errata figure pruning runs/ibke-inside-pocket --out figures",
)


def figure(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="scatter: generality against locality, all editors and models; latents: grid of"
            " l_m and beta; variants: bars by metric and data set; domains: heat maps by domain;"
            " criteria: generality by criteria and hops; trajectory: ability along sequences."
            " These look into the editors of the runs: answers: the most probable ones side by"
            " side; relations: latents on a plane, and silhouettes; gates: tokens shaded by them,"
            " and Gini; pruning: what edits lose with their gates; keys: REP's whitened"
            " similarities and gates; residuals: BLUE's, by distance.",
        ),
    ],
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, sweep folders, or folders above them."),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Where NAME.png, .svg and .csv go."),
    ] = Path("figures"),
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="answers: edits (3). The others that look into runs: cases of each (relations,"
            " gates: all; pruning 350; keys 30; residuals 20).",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="relations: draws behind the silhouettes (3).")
    ] = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Draw a figure from finished runs: PNG and SVG, and its numbers as CSV beside them."""
    from errata.reporting import figures

    with _output.progress(f"figure {name}"):
        written = figures.figure(name, runs, out, limit=limit, seeds=seeds, force=force)
    if json:
        _output.print_json({"figure": name, "files": written})
        return
    names = ", ".join(path.name for path in written)
    _output.out().print(f"{out}/: {names}", soft_wrap=True)
