"""`errata`: the commands put together, and what happens when one of them fails.

Nothing heavy is imported here: every command imports what it needs when it runs.
"""

from __future__ import annotations

import difflib
import gc
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from errata import __version__
from errata.cli import (
    _output,
    ask,
    compose,
    demo,
    doctor,
    edit,
    export,
    figure,
    ls,
    remove,
    report,
    sheet,
    show,
    sign,
    sweep,
    trace,
    train,
    tune,
    verify,
    web,
    world,
)
from errata.cli import eval as eval_
from errata.errors import ConfigError, ErrataError
from errata.progress import listening
from errata.refusals import refusal

INTERRUPTED = 130
AGAIN = "nothing is left behind, and the same command starts again"
GO_ON = {
    "eval": "the same command starts again; with --resume it goes on with a run folder",
    "train": "the same command starts again; with --resume it goes on with a run folder",
    "sweep": "the same command goes on, finished units are skipped",
    "tune": "the same command goes on, what was measured is kept",
    "sheet": "the same command goes on, facts that were edited are kept",
}
"""What to do after Ctrl-C, by command."""

OBJECTS = 50_000
"""How many new ones there are before Python looks for some that only hold each other: at its own
700 the import of torch and transformers is looked through for a second or two."""

EXAMPLES = (
    "errata demo",
    'errata edit --prompt "The capital of France is" --subject France --target Rome --out patch',
    "errata eval --editor rome --data world --limit 50 --json",
)
EPILOG = f"""{_output.examples(EXAMPLES)}

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a --fail-under gate was missed, 130 interrupted."""


class _Group(TyperGroup):
    """Turns a user's mistakes into one message and an exit code; bugs keep their traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept --debug after the command as well, where one types it when repeating a line."""
        odd = next((word for word in args if not _is_text(word)), None)
        if odd is not None:  # it could be written into no file and no JSON document
            _output.print_error(ConfigError(f"{odd!a} is not UTF-8", "Rename what it names."))
            raise typer.Exit(ConfigError.exit_code)
        head, rest = _split(args)
        if "--debug" in head:
            args = ["--debug", *(word for word in head if word != "--debug"), *rest]
            head, rest = _split(args)
        return super().parse_args(ctx, [*_chats(head), *rest])

    def invoke(self, ctx: Any) -> Any:
        try:
            with listening(_output.note):
                return super().invoke(ctx)
        except ErrataError as error:
            if ctx.params.get("debug"):
                raise
            _output.print_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            _output.note(f"interrupted; {GO_ON.get(str(ctx.invoked_subcommand), AGAIN)}")
            raise typer.Exit(INTERRUPTED) from None
        except (OSError, MemoryError, RuntimeError) as error:
            told = refusal(error)
            if told is None or ctx.params.get("debug"):
                raise
            _output.print_error(told)
            raise typer.Exit(told.exit_code) from None
        except Exception as error:
            # typer has brought its own copy of click since 0.2x: the class is known by its name
            if type(error).__name__ == "NoSuchOption":
                _name_nearest(error)
            raise


def _name_nearest(error: Any) -> None:
    """Let the message of an unknown option name the one that comes closest."""
    known = [] if error.ctx is None else error.ctx.command.get_params(error.ctx)
    names = [name for option in known for name in (*option.opts, *option.secondary_opts)]
    names = [name for name in names if name.startswith("--")]
    close = difflib.get_close_matches(error.option_name, names, n=1)
    error.possibilities = None
    if close:
        error.message = f"{error.message}. Did you mean {close[0]}?"


def _chats(args: list[str]) -> list[str]:
    """Let `--chat` stand alone: click has no options with a value that may be left out."""
    last = [*args[1:], "-"]
    return [
        "--chat=user" if word == "--chat" and behind.startswith("-") else word
        for word, behind in zip(args, last, strict=False)
    ]


def _is_text(word: str) -> bool:
    """Return whether an argument came as UTF-8: other bytes arrive as halves of characters."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the words before and from `--`, after which everything is an argument."""
    cut = args.index("--") if "--" in args else len(args)
    return args[:cut], args[cut:]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"errata {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (any position).")
    ] = False,
) -> None:
    """Correct what a language model believes: small, reversible, verified patches."""


app = typer.Typer(
    name="errata",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
app.callback()(_root)

_START, _PATCH, _MORE = "Start here", "Patches", "Measure and look"
_COMMANDS = (
    ("demo", demo.demo, demo.EXAMPLES, _START),
    ("web", web.web, web.EXAMPLES, _START),
    ("edit", edit.edit, edit.EXAMPLES, _PATCH),
    ("verify", verify.verify, verify.EXAMPLES, _PATCH),
    ("show", show.show, show.EXAMPLES, _PATCH),
    ("ask", ask.ask, ask.EXAMPLES, _PATCH),
    ("compose", compose.compose, compose.EXAMPLES, _PATCH),
    ("remove", remove.remove, remove.EXAMPLES, _PATCH),
    ("replace", remove.replace, remove.REPLACE_EXAMPLES, _PATCH),
    ("scale", compose.scale, compose.SCALE_EXAMPLES, _PATCH),
    ("sign", sign.sign, sign.EXAMPLES, _PATCH),
    ("export", export.export, export.EXAMPLES, _PATCH),
    ("import", export.import_adapter, export.IMPORT_EXAMPLES, _PATCH),
    ("eval", eval_.evaluate, eval_.EXAMPLES, _MORE),
    ("sweep", sweep.sweep, sweep.EXAMPLES, _MORE),
    ("report", report.report, report.EXAMPLES, _MORE),
    ("figure", figure.figure, figure.EXAMPLES, _MORE),
    ("train", train.train, train.EXAMPLES, _MORE),
    ("trace", trace.trace, trace.EXAMPLES, _MORE),
    ("tune", tune.tune, tune.EXAMPLES, _MORE),
    ("ls", ls.ls, ls.EXAMPLES, _MORE),
    ("doctor", doctor.doctor, doctor.EXAMPLES, _MORE),
)
for _name, _function, _lines, _panel in _COMMANDS:
    app.command(_name, epilog=_output.examples(_lines), rich_help_panel=_panel)(_function)
app.add_typer(sheet.app, name="sheet", rich_help_panel=_PATCH)
app.add_typer(world.app, name="world", rich_help_panel=_MORE)


def main() -> None:
    """Run the command line."""
    gc.set_threshold(OBJECTS)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and "utf" not in (stream.encoding or "").lower():
            reconfigure(errors="replace")
    app()
