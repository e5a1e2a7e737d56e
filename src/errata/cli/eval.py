"""`errata eval`: run a benchmark with one editor; records and a summary."""

from __future__ import annotations

import hashlib
import json as jsonlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _summary, _views
from errata.cli._gates import check_gates, check_names, parse_gates
from errata.cli._options import (
    EditorOptions,
    ForceFlag,
    Gates,
    JsonFlag,
    ModelOptions,
    SkipBad,
    data_names,
    expand,
    key_values,
)
from errata.errors import ConfigError

if TYPE_CHECKING:
    from errata.data import LoadedData
    from errata.editors.base import Editor
    from errata.evaluation.robustness import RobustnessSettings
    from errata.model.lm import LM

EXAMPLES = (
    "errata eval --editor rome --data world --limit 50",
    "errata eval --editor ft --data counterfact:counterfact.json --limit 100 --out runs/ft --json",
    "errata eval --editor rome --data zsre --regime sequential:100 --fail-under reliability=0.9",
    "errata eval --editor rome --data world --regime sequential:200 --batch 20 --every 2",
    "errata eval --editor rome --data world --limit 60 --suite robustness",
)

INTERRUPTED = 130
SORTED_BY_DOMAIN = ("uniedit", "world")
_DATA, _RUN, _LONG = "Data", "Run", "Sequences (sequential:N)"


@expand
def evaluate(
    model: ModelOptions,
    editor: EditorOptions,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="NAME|NAME:PATH|FILE.jsonl",
            help="NAME downloads, NAME:PATH reads local files; see `errata ls datasets`.",
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
    data_set: Annotated[
        list[str] | None,
        typer.Option(
            "--data-set",
            metavar="KEY=VALUE",
            help="A setting of the data set. Repeatable.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    skip_bad: SkipBad = False,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="robustness",
            help="Ask every case under perturbations instead: random prefix, long context,"
            " rephrased prompt, rephrased and shuffled subject, possessive; whole answers count.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    suite_set: Annotated[
        list[str] | None,
        typer.Option(
            "--suite-set",
            metavar="KEY=VALUE",
            help="A setting of the suite, e.g. text=FILE.txt or words=100. Repeatable.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    regime: Annotated[
        str,
        typer.Option(
            metavar="single|batch:N|sequential:N", help="How edits meet before they are scored."
        ),
    ] = "single",
    top_k: Annotated[int, typer.Option(min=1, help="Rank that counts as a hit.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    generate: Annotated[
        bool, typer.Option("--generate", help="Also score the model's own generated answers.")
    ] = False,
    fluency: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Also sample texts for every Nth case: fluency and consistency. Published: 1, or"
            " 10 for many edits. Slow; 0 for none.",
        ),
    ] = 0,
    references: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Reference texts for consistency (attribute_snippets.json); default: the world's"
            " text, or the cases' own attribute prompts.",
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, help="Edits carried out jointly in one step.", rich_help_panel=_LONG
        ),
    ] = 1,
    retention: Annotated[
        bool,
        typer.Option(
            "--retention",
            help="Also score each edit right after it is made.",
            rich_help_panel=_LONG,
        ),
    ] = False,
    perplexity: Annotated[
        str,
        typer.Option(
            metavar="FILE|auto|none",
            help="Text whose perplexity is measured; auto: for pocket held-out sentences of its"
            " world, for other models none.",
            rich_help_panel=_LONG,
        ),
    ] = "auto",
    general: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|world",
            help="Task of lm-evaluation-harness (.yaml with local data) that measures general"
            " ability; world: questions about facts that no test edits.",
            rich_help_panel=_LONG,
        ),
    ] = None,
    every: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="M",
            help="Measure perplexity, weight drift, general ability and recall every M batches;"
            " 0: before the first and after the last.",
            rich_help_panel=_LONG,
        ),
    ] = 0,
    drop_partial: Annotated[
        bool, typer.Option("--drop-partial", help="Leave out a last batch or sequence below N.")
    ] = False,
    keep_collisions: Annotated[
        bool,
        typer.Option(
            "--keep-collisions", help="Keep questions about facts that another case edits."
        ),
    ] = False,
    stack: Annotated[
        int, typer.Option(min=1, help="Edits evaluated side by side in one forward pass.")
    ] = 32,
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
    fail_under: Gates = None,
    json: JsonFlag = False,
) -> None:
    """Evaluate one editor on one data set: records, and a summary with confidence intervals."""
    gates = parse_gates(fail_under)
    if resume and not save:
        raise ConfigError("--resume needs a run folder; --no-save writes none")
    from errata.evaluation.regimes import parse_regime

    parse_regime(regime)
    tests = _suite(suite, suite_set)
    chosen = editor.build(model.model)
    if shuffle is None:
        shuffle = data.partition(":")[0] in SORTED_BY_DOMAIN
    loaded = _load(data, split, limit, seed if shuffle else None, skip_bad, data_set)
    _summary.say_notes(loaded)
    if tests is None:
        check_names(gates, loaded.cases)
    protocol: dict[str, Any] = {"regime": regime, "top_k": top_k, "seed": seed}
    request = {"model": model.model, "data": data, "split": split, "limit": limit, **protocol}
    asked = {"suite": {"name": suite, **tests.model_dump(mode="json")}} if tests else {}
    request |= asked
    folder = _folder(out, save, resume, chosen, loaded, request)
    lm = model.load()
    if folder is not None:
        _output.note(f"run folder: {folder}")
    if tests is not None:
        loaded = _perturbed(lm, loaded, tests, data_set)
        check_names(gates, loaded.cases)
    from errata.evaluation import evaluate as run

    try:
        with _output.progress(f"{editor.editor} on {loaded.name}") as step:
            result = run(
                lm,
                chosen,
                loaded,
                out=folder,
                resume=resume,
                force=force,
                progress=step,
                stack_size=stack,
                generate=generate,
                retention=retention,
                batch=batch,
                fluency=fluency,
                references=references,
                perplexity=None if perplexity == "none" else perplexity,
                general=general,
                every=every,
                drop_partial=drop_partial,
                keep_collisions=keep_collisions,
                config_extra={
                    "request": {"split": split, "limit": limit, "shuffle": shuffle},
                    **asked,
                },
                **protocol,
            )
    except KeyboardInterrupt:
        if folder is not None:
            _output.note(f"stopped; the same command with --resume --out {folder} goes on")
            raise typer.Exit(INTERRUPTED) from None
        raise
    _print(lm, chosen, result.summary, folder, json)
    check_gates(gates, result.summary)


def _load(
    data: str,
    split: str | None,
    limit: int | None,
    seed: int | None,
    skip_bad: bool,
    data_set: list[str] | None,
) -> LoadedData:
    from errata.data import load_cases

    options = key_values(data_set, "--data-set", "suffix=")
    with _output.status(f"reading {data}"):
        return load_cases(data, split, limit, seed, skip_bad, options or None)


def _suite(name: str | None, settings: list[str] | None) -> RobustnessSettings | None:
    """Return the settings of the suite that is asked for.

    Raises:
        ConfigError: If there is no such suite or setting, or settings of none.
    """
    if name is None:
        if settings:
            raise ConfigError("--suite-set needs a suite", "Add --suite robustness")
        return None
    if name != "robustness":
        raise ConfigError(f"unknown suite {name!r}", "Known: robustness")
    from errata.evaluation.robustness import settings_of

    return settings_of(settings)


def _perturbed(
    lm: LM, data: LoadedData, settings: RobustnessSettings, data_set: list[str] | None
) -> LoadedData:
    from errata.evaluation.robustness import robustness_suite

    options = key_values(data_set, "--data-set", "suffix=")
    with _output.status("perturbing the questions"):
        suite = robustness_suite(lm, data, settings, options=options)
    for text in suite.notes[len(data.notes) :]:
        _output.note(f"{suite.name}: {text}")
    return suite


def _folder(
    out: Path | None,
    save: bool,
    resume: bool,
    editor: Editor,
    data: LoadedData,
    request: dict[str, Any],
) -> Path | None:
    """Return the run folder: the one asked for, or one below `runs/` named after the request."""
    if not save:
        return None
    if out is not None:
        return out
    facts = [request, editor.name, _views.settings(editor), data.version]
    text = jsonlib.dumps(facts, sort_keys=True, default=str)
    short = hashlib.sha256(text.encode()).hexdigest()[:6]
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
    lm: LM, editor: Editor, summary: Mapping[str, Any], folder: Path | None, json: bool
) -> None:
    if json:
        _output.print_json({**summary, "run": None if folder is None else str(folder)})
        return
    console = _output.out()
    suite = ", suite robustness" if "test" in summary["by"] else ""
    console.print(f"{editor.title} on {summary['data']}{suite} · {lm.name} · {summary['regime']}")
    _summary.show(console, summary)
    if folder is not None:
        console.print(f"Records and summary: {folder}/", soft_wrap=True)
