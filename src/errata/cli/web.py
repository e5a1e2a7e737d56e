"""`errata web`: the page in a browser on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import _output
from errata.cli._options import ModelOptions, expand

if TYPE_CHECKING:
    from errata.model.lm import LM

EXAMPLES = (
    "errata web",
    "errata web --model smollm2 --open",
    "errata web --model ./my-model --port 8000",
)


@expand
def web(
    model: ModelOptions,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where to listen. Anyone who reaches it can use the page, without a password.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7860,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Edit in a browser: type a fact, see what moved, undo, compare editors, take the patch along.

    The page and the model stay on this machine: nothing is sent anywhere. --model names the model
    that it begins with; others on this machine can be chosen there.
    """
    from errata.web.server import is_loopback, serving, stay_here, until_ended

    stay_here()
    model = model.for_editing()
    # what was said of the named model is not said of others, least of all that its code may run
    others = replace(model, revision=None, trust_remote_code=False, gguf_file=None, site=None)

    def load(name: str) -> LM:
        return model.load() if name == model.model else others.load_named(name)

    with serving(load, model.model, (model.model,), host=host, port=port) as address:
        _output.note(f"The page is at {address} · Ctrl-C ends it")
        if not is_loopback(host):
            _output.note(
                f"Anyone who reaches {host} can use it; they can choose the models named here."
            )
        if open_:
            import webbrowser

            webbrowser.open(address)
        until_ended()
    _output.note("The page is closed; all models are as they were.")
