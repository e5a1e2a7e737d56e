"""`errata train`: train the networks of an editor; resumable, and checked before it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _summary
from errata.cli._completion import editor_names
from errata.cli._options import (
    AsPublished,
    ForceFlag,
    JsonFlag,
    ModelOptions,
    SkipBad,
    expand,
    key_values,
)
from errata.errors import ConfigError, RunError

if TYPE_CHECKING:
    from errata.editors.base_networks import NetworkEditor
    from errata.training import TrainConfig
    from errata.training.loop import Trained
    from errata.training.sources import Sources

EXAMPLES = (
    "errata train ibke --model pocket --data world --out runs/ibke --steps 200",
    "errata train ibke --model pocket --data world --out runs/ibke --steps 200 --resume",
    "errata train mend --model gpt2-xl --as-published gpt2-xl --out runs/mend "
    "--data uniedit,counterfact:counterfact-train.json:512,zsre:zsre-train.json:512",
)

INTERRUPTED = 130
SORTED_BY_DOMAIN = ("uniedit", "world")
_DATA, _EDITOR, _RUN = "Data", "Editor", "Run"


@dataclass(frozen=True)
class LoopOptions:
    """How the networks are trained."""

    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the optimiser; short for --train steps=N.")
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of everything that is drawn; short for --train seed=K."),
    ] = None
    tracker: Annotated[
        str | None,
        typer.Option(metavar="tensorboard|trackio", help="Log there too, besides log.jsonl."),
    ] = None
    training: Annotated[
        list[str] | None,
        typer.Option(
            "--train",
            "-t",
            metavar="KEY=VALUE",
            help="A setting of the loop, e.g. lr=1e-3; see docs/training.md. Repeatable.",
            rich_help_panel=_EDITOR,
        ),
    ] = None


@dataclass(frozen=True)
class DataOptions:
    """Which records they learn from, besides the data sets' names."""

    split: Annotated[
        str | None,
        typer.Option(help="Part of the main data set; default train.", rich_help_panel=_DATA),
    ] = None
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT",
            help="Part of it that chooses the best networks; default val, else held out.",
            rich_help_panel=_DATA,
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Records of the main data set.", rich_help_panel=_DATA),
    ] = None
    shuffle: Annotated[
        bool | None,
        typer.Option(
            "--shuffle/--no-shuffle",
            help="Draw those of --limit by the seed, or take the first. Sets whose files are sorted"
            " by domain (world, uniedit) are drawn unless told otherwise.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None
    data_set: Annotated[
        list[str] | None,
        typer.Option(
            "--data-set",
            metavar="KEY=VALUE",
            help="A setting of the main data set. Repeatable.",
            rich_help_panel=_DATA,
        ),
    ] = None
    skip_bad: SkipBad = False


@dataclass(frozen=True)
class PushOptions:
    """Where the result goes besides the run folder."""

    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Put best/ on the Hub too, from where --editor OWNER/NAME fetches it.",
            rich_help_panel=_RUN,
        ),
    ] = None
    private: Annotated[
        bool,
        typer.Option("--private", help="--push: as a private repository.", rich_help_panel=_RUN),
    ] = False

    def check(self) -> None:
        """Refuse what could not be pushed, before anything is trained.

        Raises:
            ConfigError: If the name is none of a repository, or there is nothing to push.
        """
        if self.push is not None:
            from errata.patch.hub import check_name

            check_name(self.push, "--push")
        elif self.private:
            raise ConfigError("--private is for --push OWNER/NAME", "Leave it out.")

    def carry_out(self, best: Path) -> str | None:
        """Upload the networks, if they are to be; return where they can be looked at."""
        if self.push is None:
            return None
        from errata.patch.hub import push

        with _output.status(f"pushing to {self.push}"):
            return push(
                best, self.push, private=self.private, what="networks trained by errata",
                again="give the same command with --resume",
            )  # fmt: skip


@expand
def train(
    editor: Annotated[
        str,
        typer.Argument(
            help="A trained editor; see `errata ls editors`.", autocompletion=editor_names
        ),
    ],
    model: ModelOptions,
    loop: LoopOptions,
    records: DataOptions,
    upload: PushOptions,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="SPEC[,SPEC…]",
            help="NAME, NAME:PATH, NAME:PATH:N or NAME::N (N records, drawn by --seed); the first"
            " is the main data set, the others are mixed in.",
            rich_help_panel=_DATA,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="RUN",
            help="Run folder; best/ holds the result.",
            rich_help_panel=_RUN,
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="A setting of the networks, e.g. layers=[2,3]. Repeatable.",
            rich_help_panel=_EDITOR,
        ),
    ] = None,
    as_published: AsPublished = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on where the run in --out stopped.", rich_help_panel=_RUN
        ),
    ] = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Train the networks of an editor (IBKE, MEND …) for one model, which stays as it is.

    Interrupted or killed, the same command with --resume goes on and ends with the same weights.
    Several processes: accelerate launch --num_processes 2 -m errata train …
    """
    if resume and force:
        raise ConfigError(
            "--resume goes on with the run, --force replaces it", "Give one or the other."
        )
    upload.check()
    chosen, config = _settings(editor, model.model, settings, loop, as_published)
    if (out / "config.json").exists() and not (force or resume):
        raise RunError(
            f"{out} already holds a run",
            "Go on with it: --resume. Replace it: --force. Or choose another --out.",
        )
    _output.check_free(out, "config.json", force=True)
    sources = _read(data, records, config.seed)
    lm = _on_own_device(model).load()
    from errata.api import train as run

    with _Show(f"{editor}: ", quiet=not _is_main()) as show:
        try:
            made = run(
                lm,
                chosen,
                [pool.cases for pool in sources.pools],
                out,
                validation=None if sources.validation is None else sources.validation.cases,
                config=config,
                resume=resume,
                force=force,
                about=sources.about,
                report=show.report,
                watch=show.watch,
            )
        except KeyboardInterrupt:
            show.close()
            if _is_main():
                _output.note(f"stopped; the same command with --resume goes on with {out}")
            raise typer.Exit(INTERRUPTED) from None
    if _is_main():
        _print(made, model.model, json, upload)


def _is_main() -> bool:
    """Whether this is the first of the processes that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def _on_own_device(model: ModelOptions) -> ModelOptions:
    """Give each process that a launcher started its own GPU, unless a device was named."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or model.device is not None:
        return model
    import torch

    return replace(model, device=f"cuda:{local}") if torch.cuda.is_available() else model


def _settings(
    editor: str,
    model: str,
    networks: list[str] | None,
    loop: LoopOptions,
    as_published: str | None,
) -> tuple[NetworkEditor, TrainConfig]:
    """Return the untrained editor and the settings of the loop.

    Raises:
        ConfigError: If the editor has nothing to train, or a setting is wrong.
    """
    given = key_values(loop.training, "--train", "lr=1e-3")
    short = {"steps": loop.steps, "seed": loop.seed, "tracker": loop.tracker}
    from errata.editors.base_networks import trainable
    from errata.training.config import settings_for

    chosen = trainable(editor, model, overrides=networks or (), as_published=as_published)
    values = {key: value for key, value in short.items() if value is not None}
    overrides = [f"{key}={value}" for key, value in given.items()]
    return chosen, settings_for(chosen, model, values, overrides)


def _read(data: str, records: DataOptions, seed: int) -> Sources:
    from errata.training.sources import parse_sources, read_sources

    options = key_values(records.data_set, "--data-set", "suffix=", empty=True)
    shuffle = records.shuffle
    if shuffle is None:
        by_domain = parse_sources(data)[0].name in SORTED_BY_DOMAIN
        shuffle = records.limit is not None and by_domain
    with _output.status(f"reading {data}"):
        sources = read_sources(
            data,
            split=records.split,
            validation=records.validation,
            limit=records.limit,
            shuffle=shuffle,
            seed=seed,
            skip_bad=records.skip_bad,
            options=options or None,
        )
    if _is_main():
        for pool in sources.pools:
            _summary.say_notes(pool)
    return sources


class _Show:
    """Progress of a run on stderr: what is being done, how far it is, and the last losses.

    Args:
        label: Put before what is being done.
        quiet: Show nothing.
    """

    def __init__(self, label: str, quiet: bool) -> None:
        self.label, self.quiet = label, quiet
        self.stack = ExitStack()
        self.what: str | None = None
        self.losses = ""
        self.step: _output.Progress = lambda done, total, text="": None

    def __enter__(self) -> _Show:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        self.stack.close()

    def report(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` is done of what is going on."""
        if self.quiet:
            return
        if what != self.what:
            self.stack.close()
            self.what = what
            self.step = self.stack.enter_context(_output.progress(f"{self.label}{what}"))
        self.step(done, total, self.losses)

    def watch(self, entry: Mapping[str, Any]) -> None:
        """Remember the losses of an entry of the log; say those of a validation at once."""
        names = ("total", "sg", "il", "penalty")
        text = ", ".join(f"{key} {entry[key]:.3f}" for key in names if entry.get(key) is not None)
        if entry["kind"] == "train":
            self.losses = text
        elif not self.quiet:
            _output.note(f"step {entry['step']}: validation {text}")


def _print(made: Trained, model: str, json: bool, upload: PushOptions) -> None:
    from errata.nets.weights import read_config

    url = upload.carry_out(made.best)
    losses = read_config(made.best).get("validation") or {}
    use = f"errata eval --editor {made.folder} --model {model} --data world"
    if json:
        _output.print_json(
            {
                **made.summary,
                "validation": losses or None,
                "run": str(made.folder),
                "best_folder": str(made.best),
                "use": use,
                **({} if url is None else {"repo": upload.push, "url": url}),
            }
        )
        return
    summary = made.summary
    table = _output.table("what", "value")
    stopped = " (stopped early)" if summary["stopped_early"] else ""
    table.add_row("steps", f"{summary['step']:,}{stopped}")
    table.add_row("best step", f"{summary['best_step']:,}")
    for name, value in losses.items():
        table.add_row(f"validation {name}", f"{value:.4f}")
    table.add_row("parameters", f"{summary['parameters']:,}")
    table.add_row("time", _output.seconds(summary["seconds"]))
    console = _output.out()
    console.print(f"{summary['editor']} for {summary['model']}")
    console.print(table)
    console.print(f"Saved {made.best}/. Use it: {use}", soft_wrap=True)
    if url is not None:
        told = f"Pushed to {url}. Use it: errata eval --editor {upload.push} --model {model}"
        console.print(f"{told} --data world", soft_wrap=True)
