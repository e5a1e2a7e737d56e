"""`errata eval`: run a benchmark with one editor; records and a summary."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _summary, _views
from errata.cli._completion import data_names
from errata.cli._gates import check_gates, check_names, parse_gates
from errata.cli._options import (
    EditorOptions,
    ForceFlag,
    Gates,
    JsonFlag,
    ModelOptions,
    SkipBad,
    expand,
    key_values,
)
from errata.data import load_cases, resolve, split_part
from errata.errors import ConfigError
from errata.evaluation.protocol import Protocol
from errata.store.digest import digest_of_value

if TYPE_CHECKING:
    from errata.data import LoadedData
    from errata.editors.base import Editor
    from errata.model.lm import LM

EXAMPLES = (
    "errata eval --editor rome --data world --limit 50",
    "errata eval --editor ft --data counterfact:counterfact.json --limit 100 --out runs/ft --json",
    "errata eval --editor rome --data zsre --regime sequential:100 --fail-under reliability=0.9",
    "errata eval --editor rome --data world --regime sequential:200 --batch 20 --every 2",
    "errata eval --editor rome --data world --limit 60 --suite robustness",
    "errata eval --editor rome --data counterfact:sample --limit 5 --suite beyond",
)

INTERRUPTED = 130
SORTED_BY_DOMAIN = ("uniedit", "world")
_DATA, _RUN = "Data", "Run"


TrustTaskCode = Annotated[
    bool,
    typer.Option(
        "--trust-task-code",
        help="Let task files of --general run code: functions and any template.",
        rich_help_panel=_RUN,
    ),
]
DataSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--data-set",
        metavar="KEY=VALUE",
        help="A setting of the data set. Repeatable.",
        rich_help_panel=_DATA,
    ),
]


@expand
def evaluate(
    model: ModelOptions,
    editor: EditorOptions,
    protocol: Protocol,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="NAME|NAME:PATH|FILE",
            help="NAME downloads, NAME:PATH or FILE is read; see `errata ls datasets`.",
            autocompletion=data_names,
            rich_help_panel=_DATA,
        ),
    ],
    split: Annotated[
        str | None, typer.Option(help="Part of the data set.", rich_help_panel=_DATA)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of cases.", rich_help_panel=_DATA)
    ] = None,
    shuffle: Annotated[
        bool | None,
        typer.Option(
            "--shuffle/--no-shuffle",
            help="Draw the cases by --seed, or take them in the order of the file. Sets whose files"
            " are sorted by domain (world, uniedit) are drawn unless told otherwise.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None,
    data_set: DataSettings = None,
    skip_bad: SkipBad = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="RUN",
            help="Run folder; default runs/<date>_<editor>_<data>_<hash>.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    save: Annotated[
        bool,
        typer.Option("--save/--no-save", help="Write a run folder at all.", rich_help_panel=_RUN),
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run stopped.", rich_help_panel=_RUN)
    ] = False,
    force: ForceFlag = False,
    trust_task_code: TrustTaskCode = False,
    fail_under: Gates = None,
    json: JsonFlag = False,
) -> None:
    """Evaluate one editor on one data set: records, and a summary with confidence intervals."""
    gates = parse_gates(fail_under)
    if resume and not save:
        raise ConfigError("--resume needs a run folder; --no-save writes none")
    chosen = editor.build(model.model)
    if shuffle is None:
        shuffle = resolve(split_part(data)[0])[0] in SORTED_BY_DOMAIN
    options = key_values(data_set, "--data-set", "suffix=", empty=True) or None
    with _output.status(f"reading {data}"):
        loaded = load_cases(
            data, split, limit, protocol.seed if shuffle else None, skip_bad, options
        )
    _summary.say_notes(loaded)
    if protocol.suite is None:
        check_names(gates, loaded.cases)
    request = {"model": model.model, "data": data, "split": split, "limit": limit}
    folder = _folder(out, save, resume, chosen, loaded, request, protocol)
    lm, chosen = _loaded(model, chosen)
    if folder is not None:
        _output.note(f"run folder: {folder}")
    from errata.evaluation import evaluate as run
    from errata.evaluation.task_files import trusting

    try:
        with (
            trusting(trust_task_code),
            _output.progress(f"{editor.editor} on {loaded.name}") as step,
        ):
            result = run(
                lm, chosen, loaded, protocol=protocol, data_options=options, out=folder,
                resume=resume, force=force, progress=step,
                config_extra={"request": {"split": split, "limit": limit, "shuffle": shuffle}},
            )  # fmt: skip
    except KeyboardInterrupt:
        if folder is not None:
            _output.note(f"stopped; the same command with --resume --out {folder} goes on")
            raise typer.Exit(INTERRUPTED) from None
        raise
    for text in result.notes[len(loaded.notes) :]:
        _output.note(f"{loaded.name}: {text}")
    _print(lm, chosen, result.summary, folder, protocol.suite, json)
    check_gates(gates, result.summary)


def _loaded(model: ModelOptions, editor: Editor) -> tuple[LM, Editor]:
    """Load the model; return it, and the editor with settings that suit it, and say which."""
    from errata.editors.fitting import fitted

    lm = model.load(lambda: editor.ready(model.model))
    found = fitted(editor, lm)
    if found.settings_from:
        _output.note(f"settings: {found.settings_from}")
    return lm, found


def _folder(
    out: Path | None,
    save: bool,
    resume: bool,
    editor: Editor,
    data: LoadedData,
    request: Mapping[str, Any],
    protocol: Protocol,
) -> Path | None:
    """Return the run folder: the one asked for, or one below `runs/` named after the request."""
    if not save:
        return None
    if out is not None:
        return out
    facts = [request, protocol.section(), editor.name, _views.settings(editor), data.version]
    short = digest_of_value(facts)[:6]
    tail = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{editor.name}_{data.name}_{short}")
    if resume:
        there = sorted(Path("runs").glob(f"*_{tail}*"))
        if not there:
            raise ConfigError(
                f"no run of this request below runs/ (…_{tail})", "Name it: --out RUN --resume"
            )
        return there[-1]
    return _output.fresh(Path("runs") / f"{time.strftime('%Y-%m-%d')}_{tail}")


def _print(
    lm: LM,
    editor: Editor,
    summary: Mapping[str, Any],
    folder: Path | None,
    named: str | None,
    json: bool,
) -> None:
    if json:
        _output.print_json({**summary, "run": None if folder is None else str(folder)})
        return
    console = _output.out()
    suite = f", suite {named}" if named else ""
    console.print(
        f"{editor.title} on {summary['data']}{suite} · {lm.name} · {summary['regime']}"
        f" · top {summary['top_k']}",
        soft_wrap=True,
    )
    _summary.show(console, summary)
    if folder is not None:
        console.print(f"Records and summary: {folder}/", soft_wrap=True)
