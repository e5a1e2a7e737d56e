"""Options that several commands share, each group written once.

A command takes a group, or a class of settings, as one argument; `expand` turns its fields into
flags:

```python
@expand
def command(model: ModelOptions, json: JsonFlag = False) -> None: ...
```
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Self, cast, get_type_hints

import typer

from errata.cli import _flags
from errata.cli._completion import editor_names, model_names
from errata.config import Settings
from errata.errors import ConfigError, DataError

if TYPE_CHECKING:
    from errata.case import Chat
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.model.products import Compute


JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")
]
ForceFlag = Annotated[bool, typer.Option("--force", help="Replace what is already there.")]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
]
Occurrence = Annotated[
    str,
    typer.Option(metavar="first|last|N", help="Which occurrence of the subject is meant."),
]

Joiner = Annotated[
    str,
    typer.Option(
        metavar="auto|TEXT",
        help="What stands between prompt and target; auto: a space where their scripts use "
        'one; "" for nothing.',
    ),
]
Gates = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-under",
        metavar="METRIC=RATE",
        help="Exit with 3 if this rate is missed, e.g. reliability=0.95. Repeatable.",
    ),
]

Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-over",
        metavar="METRIC=VALUE",
        help="Exit with 3 if more than this moved beside the edits: neighbours=0.1, bare=0,"
        " sentences=0.05 (KL), sentences_max=1. Repeatable.",
    ),
]
Neighbours = Annotated[
    bool,
    typer.Option(
        "--neighbours/--no-neighbours",
        help="Ask what else moved: other subjects in the same prompts, general sentences.",
    ),
]

_MODEL, _EDITOR = "Model", "Editor"

AsPublished = Annotated[
    str | None,
    typer.Option(
        "--as-published",
        metavar="BACKBONE",
        help="Settings published for this model, e.g. gpt2-xl; --set still wins.",
        rich_help_panel=_EDITOR,
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Leave broken records out instead of stopping.",
        rich_help_panel="Data",
    ),
]


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded."""

    dtype: Annotated[
        str | None,
        typer.Option(
            help="float64, float32, bfloat16 or float16 (CPU default: float32).",
            rich_help_panel=_MODEL,
        ),
    ] = None
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1 …; auto: over all there is.", rich_help_panel=_MODEL),
    ] = None
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit on the Hub.", rich_help_panel=_MODEL),
    ] = None
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Let code from the Hub repository run.",
            rich_help_panel=_MODEL,
        ),
    ] = False
    gguf_file: Annotated[
        str | None,
        typer.Option(help="Which GGUF file of a folder or Hub repository.", rich_help_panel=_MODEL),
    ] = None
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            metavar="KEY=PATH",
            help="Override a site, e.g. ffn_out=model.layers.{}.mlp.down_proj. Repeatable.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    compute: Annotated[
        str | None,
        typer.Option(
            help="What editing multiplies in: float32, bfloat16, or auto (what this machine does "
            "fast). Scores stay in the model's type. Default: auto in edit and web, but with "
            "--as-published; float32 elsewhere.",
            show_default=False,
            rich_help_panel=_MODEL,
        ),
    ] = None
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads.", rich_help_panel=_MODEL)
    ] = None

    def for_editing(self, as_published: str | None = None) -> Self:
        """Return options by which edits are searched fast, unless they are to be as published."""
        if self.compute is not None or as_published is not None:
            return self
        return replace(self, compute="auto")

    def as_made(self, meta: Mapping[str, Any]) -> Self:
        """Return options by which what a patch says of itself is searched as it was."""
        if self.compute is not None or meta.get("compute") != "bfloat16":
            return self
        return replace(self, compute="bfloat16")

    def load_named(self, model: str, ready: Callable[[], None] | None = None) -> LM:
        """Load the model of that name.

        Args:
            model: Its name.
            ready: Called before the weights are read.

        Raises:
            ConfigError: If a flag holds an unknown value.
            ModelError: If the model cannot be loaded.
        """
        from errata.cli._output import status

        sites = key_values(self.site, "--site", "ffn_out=model.layers.{}.mlp.down_proj")
        with status(f"loading {model}"):
            import torch

            from errata.model.loading import load

            if self.threads is not None:
                torch.set_num_threads(self.threads)
            return load(
                model,
                dtype=self.dtype,
                device=self.device,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                sites=sites,
                gguf_file=self.gguf_file,
                compute=cast("Compute", self.compute or "float32"),
                ready=ready,
            )


@dataclass(frozen=True)
class ModelOptions(LoadOptions):
    """Which model, and how it is loaded."""

    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="pocket, smollm2, a folder, a GGUF file, or a Hub id.",
            rich_help_panel=_MODEL,
            autocompletion=model_names,
        ),
    ] = "pocket"

    def load(self, ready: Callable[[], None] | None = None) -> LM:
        """Load the model; see `load_named`."""
        return self.load_named(self.model, ready)


@dataclass(frozen=True)
class ChatOptions:
    """How questions are asked: as plain text, or in the model's chat."""

    chat: Annotated[
        str,
        typer.Option(
            "--chat",
            metavar="off|user|system+user",
            help="Ask in the model's chat: prompts are a user's message, rendered by its own "
            "template. --chat alone means user.",
        ),
    ] = "off"
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The system message, with --chat system+user."),
    ] = None

    def check(self) -> Chat:
        """Return the chat.

        Raises:
            ConfigError: If there is no such chat, or a system message would not be read.
        """
        from errata.case import check_chat

        try:
            return check_chat(self.chat, self.system)
        except DataError as error:
            raise ConfigError(f"--chat: {error.message}", error.hint) from None


@dataclass(frozen=True)
class EditorOptions:
    """Which editor, with which settings."""

    editor: Annotated[
        str,
        typer.Option(
            "--editor",
            "-e",
            metavar="NAME|FOLDER|HUB-ID",
            help="See `errata ls editors`; or a folder that `errata train` wrote.",
            autocompletion=editor_names,
            rich_help_panel=_EDITOR,
        ),
    ] = "rome"
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="A setting of the editor, e.g. layer=3. Repeatable.",
            rich_help_panel=_EDITOR,
        ),
    ] = None
    as_published: AsPublished = None

    def build(self, model: str) -> Editor:
        """Return the editor, with the settings that suit the model.

        Raises:
            ConfigError: If the editor or a setting is unknown, or a value out of range.
        """
        from errata.editors import get_editor

        return get_editor(
            self.editor,
            overrides=self.settings or (),
            as_published=self.as_published,
            model=model,
        )


def key_values(
    pairs: list[str] | None, flag: str, example: str, *, empty: bool = False
) -> dict[str, str]:
    """Split the `KEY=VALUE` strings of a repeatable flag.

    Args:
        pairs: What was typed.
        flag: The flag, for messages.
        example: What could follow it.
        empty: Whether a value may be the empty text.

    Raises:
        ConfigError: If one of them has no `=`.
    """
    values: dict[str, str] = {}
    for pair in pairs or ():
        key, sep, value = pair.partition("=")
        if not sep or not key.strip() or not (empty or value.strip()):
            raise ConfigError(
                f"{flag} {pair!r} is not of the form KEY=VALUE", f"Example: {flag} {example}"
            )
        values[key.strip()] = value.strip()
    return values


_CONTEXT: ContextVar[Any] = ContextVar("context", default=None)


def typed(name: str) -> bool | None:
    """Return whether an option of the running command was typed; None outside of a command."""
    context = _CONTEXT.get()
    source = None if context is None else context.get_parameter_source(name)
    return None if source is None else source.name not in ("DEFAULT", "DEFAULT_MAP")


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Replace every parameter that is a group of options by one parameter per field."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    tables: dict[str, type[Settings]] = {}
    plain: list[inspect.Parameter] = []
    expanded: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if isinstance(kind, type) and issubclass(kind, Settings):
            tables[name] = kind
            expanded += _flags.parameters(kind)
            continue
        if not is_dataclass(kind):
            plain.append(parameter.replace(annotation=kind))
            continue
        assert isinstance(kind, type)
        groups[name] = kind
        types = get_type_hints(kind, include_extras=True)
        expanded += [
            inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=types[item.name],
                default=inspect.Parameter.empty if item.default is MISSING else item.default,
            )
            for item in _own_first(kind)
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        _CONTEXT.set(given.pop("ctx", None))
        for name, kind in groups.items():
            given[name] = kind(**{item.name: given.pop(item.name) for item in fields(kind)})
        for name, table in tables.items():
            values = {key: given.pop(key) for key in table.model_fields}
            given[name] = _flags.read(table, values, command.__name__)
        command(**given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [p.replace(kind=keyword) for p in plain]
    every = [*own, *expanded, inspect.Parameter("ctx", keyword, annotation=typer.Context)]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in every}
    del run.__wrapped__  # type: ignore[attr-defined]
    return run


def _own_first(kind: type[Any]) -> list[Field[Any]]:
    """Return the fields of a group, those of the class itself before the inherited ones."""
    own = inspect.get_annotations(kind)
    return sorted(fields(kind), key=lambda item: item.name not in own)
