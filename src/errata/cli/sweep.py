"""`errata sweep`: editors × models × data sets × seeds from one recipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _sweep_views
from errata.cli._options import DryRunFlag, ForceFlag, JsonFlag
from errata.errors import ConfigError, RunError

if TYPE_CHECKING:
    from errata.sweeping.recipe import Recipe
    from errata.sweeping.schedule import Executor
    from errata.sweeping.units import Unit

EXAMPLES = (
    "errata sweep recipes/ibke-table2.toml --dry-run",
    "errata sweep recipes/table2-pocket.toml --limit 5 --steps 20",
    "errata sweep recipes/ibke-table2.toml --only 'gpt2-xl/*' --devices 0,1",
    "errata sweep recipes/ibke-table2.toml --ray auto",
)
INTERRUPTED = 130
_RUN, _WHERE = "Run", "Where"


def sweep(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to sweep over.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder of all runs; default runs/NAME of the recipe.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Only cells whose name MODEL/ROW/DATA/seedK matches, with the trainings they"
            " need, e.g. 'gpt2-xl/*'. Repeatable.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many cases per cell.", rich_help_panel=_RUN),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many steps per training.", rich_help_panel=_RUN),
    ] = None,
    data_dir: Annotated[
        Path,
        typer.Option(
            "--data-dir",
            metavar="DIR",
            envvar="ERRATA_DATA",
            show_envvar=False,
            show_default=False,
            help="What {data} in the recipe stands for; default $ERRATA_DATA, else data.",
            rich_help_panel=_RUN,
        ),
    ] = Path("data"),
    retries: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="How often a unit that failed or was killed starts again; default: the recipe's.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Units at once on this machine; default 1, or one per device.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="GPUs to spread units over, one unit on each.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|ADDRESS|local",
            help="Run on this Ray cluster; local starts one here (extra `cluster`).",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Run a recipe: every editor on every model and data set, with the trainings they need.

    Finished units are skipped, so the same command goes on where a sweep stopped.
    """
    if ray is not None and devices is not None:
        raise ConfigError("--devices is for this machine; Ray assigns GPUs by the recipe's `gpus`")
    from errata.sweeping.check import check
    from errata.sweeping.recipe import read_recipe
    from errata.sweeping.units import expand

    found = read_recipe(recipe, data_dir)
    folder = (out or Path("runs") / found.name).absolute()
    units = _chosen(expand(found, folder, limit=limit, steps=steps), only)
    with _output.status("checking the recipe"):
        settings = check(found, units, files=not dry_run)
    if dry_run:
        from errata.sweeping.estimate import estimate

        estimates = {u.name: estimate(u, found, settings[u.name], limit, steps) for u in units}
        _sweep_views.show_plan(found, units, estimates, recipe, json)
        return
    _run(found, units, folder, retries, jobs, devices, ray, force, json)


def _chosen(units: list[Unit], only: list[str] | None) -> list[Unit]:
    """Return the cells that match, and the trainings they need."""
    if not only:
        return units
    cells = [
        unit
        for unit in units
        if unit.kind == "eval" and any(fnmatchcase(unit.name, pattern) for pattern in only)
    ]
    if not cells:
        example = next(unit.name for unit in units if unit.kind == "eval")
        raise ConfigError(
            f"--only {' '.join(only)}: no cell of that name", f"One is called {example}"
        )
    needed = {name for unit in cells for name in unit.needs}
    return [unit for unit in units if unit.name in needed] + cells


# ---------------------------------------------------------------------- running


def _run(
    recipe: Recipe, units: list[Unit], folder: Path, retries: int | None, jobs: int | None,
    devices: str | None, ray: str | None, force: bool, json: bool,
) -> None:  # fmt: skip
    from errata.sweeping import schedule
    from errata.sweeping.scores import labels_of, results
    from errata.sweeping.state import State

    labels = labels_of(recipe)
    with State.open(folder, recipe.name, units, labels=labels, force=force) as state:
        _output.note(f"{folder}: {_sweep_views.counted(units)}")
        again = recipe.retries if retries is None else retries
        # Ray prints what happens to its workers; stdout is for the result
        with redirect_stdout(sys.stderr):
            executor = _executor(recipe, jobs, devices, ray)
            try:
                schedule.run(units, state, executor, retries=again, say=_output.note)
            except KeyboardInterrupt:
                _output.note("stopped; the same command goes on, finished units are skipped")
                raise typer.Exit(INTERRUPTED) from None
            executor.stop()
        entries = results(units, state)
        _sweep_views.show_results(recipe, units, entries, state, folder, json)
    _report_failures(entries)


def _executor(recipe: Recipe, jobs: int | None, devices: str | None, ray: str | None) -> Executor:
    if ray is not None:
        from errata.sweeping.cluster import RayExecutor

        address = None if ray == "local" else ray
        hardware = recipe.hardware
        return RayExecutor(address, cpus=hardware.cpus, gpus=hardware.gpus, local_cpus=jobs)
    from errata.sweeping.local import LocalExecutor

    named = [word.strip() for word in (devices or "").split(",") if word.strip()]
    return LocalExecutor(jobs or max(1, len(named)), named)


def _report_failures(entries: Sequence[Mapping[str, Any]]) -> None:
    """Say on stderr what failed, with the end of each log.

    Raises:
        RunError: If something failed.
    """
    failed = [entry for entry in entries if entry["status"] == "failed"]
    for entry in failed:
        _output.note(f"{entry['name']}: {entry['reason']} after {entry['attempts']} attempts")
        for line in entry.get("log", ()):
            _output.note(f"    {line}")
    blocked = sum(entry["status"] == "blocked" for entry in entries)
    if failed:
        also = f", and {blocked} that need them did not run" if blocked else ""
        raise RunError(
            f"{len(failed)} of {len(entries)} units failed{also}",
            "Mend the cause and give the same command: only what is missing runs.",
        )
