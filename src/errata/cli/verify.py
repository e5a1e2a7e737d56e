"""`errata verify`: score a finished patch with probes, as a gate before it ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import _output, _summary, _views
from errata.cli._gates import check_gates, parse_gates
from errata.cli._options import Gates, JsonFlag, ModelOptions, expand
from errata.cli.export import base_of

EXAMPLES = (
    "errata verify rome-france --cases checks.jsonl",
    "errata verify rome-france --cases checks.jsonl --fail-under reliability=0.95"
    " --fail-under locality=0.9",
    "errata verify rome-france --cases counterfact:counterfact.json --limit 100 --json",
)


@expand
def verify(
    patch: Annotated[Path, typer.Argument(help="A patch folder.", show_default=False)],
    model: ModelOptions,
    cases: Annotated[
        str,
        typer.Option(metavar="FILE|NAME:PATH", help="Cases with probes; see `errata ls datasets`."),
    ],
    split: Annotated[str | None, typer.Option(help="Part of the data set.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first N cases.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Rank that counts as a hit.")] = 5,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave broken records out instead of stopping.")
    ] = False,
    fail_under: Gates = None,
    json: JsonFlag = False,
) -> None:
    """Score a finished patch: are the edits there, do they generalise, did anything else move?

    The edits inside each case are asked for, not carried out.
    """
    from errata.patch import Patch

    gates = parse_gates(fail_under)
    loaded = Patch.load(patch)
    from errata.data import load_cases

    data = load_cases(cases, split, limit, skip_bad=skip_bad)
    _summary.say_notes(data)
    lm = base_of(loaded, model).load()
    loaded.check(lm)
    from errata.api import FixedPatch
    from errata.evaluation import evaluate

    with _output.progress("verifying") as step:
        result = evaluate(
            lm,
            FixedPatch(loaded),
            data,
            top_k=top_k,
            progress=step,
        )
    summary = {"patch": str(patch), **result.summary}
    if json:
        _output.print_json(summary)
    else:
        console = _output.out()
        console.print(f"{patch} · {_views.what_changed(lm, loaded)} · {lm.name}")
        _summary.show(console, result.summary)
    check_gates(gates, result.summary)
