"""`errata ask`: one more question to a model, without and with a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _targets, _views
from errata.cli._completion import model_names
from errata.cli._options import ChatOptions, JsonFlag, ModelOptions, expand
from errata.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch

EXAMPLES = (
    'errata ask rome-france --prompt "The capital of France is"',
    'errata ask pocket --prompt "The capital of France is" --prompt "The capital of Italy is"',
    'errata ask adapter --prompt "The capital of France is" --tokens 5 --json',
)


@expand
def ask(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PATCH|MODEL",
            help="A patch folder, a LoRA folder, or a model: pocket, a folder or a Hub id.",
            show_default=False,
            autocompletion=model_names,
        ),
    ],
    model: ModelOptions,
    chat: ChatOptions,
    prompt: Annotated[
        list[str],
        typer.Option(
            "--prompt", "-p", help="The question, ending just before the answer. Repeatable."
        ),
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the model's own words.")] = 12,
    top: Annotated[int, typer.Option(min=1, help="Most probable next tokens to show.")] = 5,
    json: JsonFlag = False,
) -> None:
    """Ask a model, without and with a patch: its own words, and the most probable next tokens."""
    chat.check()
    for text in prompt:
        if not text.strip():
            raise ConfigError("--prompt is empty", "Give a question.")
    folder = Path(target).expanduser()
    if _targets.kind_of(folder) in (_targets.PATCH, _targets.ADAPTER):
        patch, lm = _targets.patch_and_model(folder, model)
        _ask_patch(lm, patch, target, prompt, chat, tokens, top, json)
        return
    if _targets.given(model) and model.model != target:
        raise ConfigError(
            f"{target} is no patch, and --model names another model", "Give one of the two."
        )
    try:
        lm = replace(model, model=target).load()
    except ModelError as error:
        raise ModelError(f"{target} is no patch folder, and {error.message}", error.hint) from None
    _ask_model(lm, prompt, chat, tokens, top, json)


def _ask_patch(
    lm: LM,
    patch: Patch,
    target: str,
    prompts: Sequence[str],
    how: ChatOptions,
    tokens: int,
    top: int,
    json: bool,
) -> None:
    from errata.api import compare

    views = compare(
        lm, patch, list(prompts), k=top, new_tokens=tokens, chat=how.check(), system=how.system
    )
    if json:
        answers = [
            {
                "prompt": view.prompt,
                "base": _answer(view.says_before, view.before),
                "patch": _answer(view.says_after, view.after),
            }
            for view in views
        ]
        _output.print_json({"model": lm.name, "patch": target, **_how(how), "answers": answers})
        return
    console = _output.out()
    console.print(f"{target} · {_views.what_changed(patch)} · {lm.name}", soft_wrap=True)
    console.print(_views.before_after(views, ("model", "under the patch")))


def _ask_model(
    lm: LM, prompts: Sequence[str], how: ChatOptions, tokens: int, top: int, json: bool
) -> None:
    rows = lm.rows(prompts, how.check(), how.system)
    says, likely = lm.generate(rows, tokens), lm.top(rows, top)
    if json:
        answers = [
            {"prompt": prompt, "base": _answer(text, words)}
            for prompt, text, words in zip(prompts, says, likely, strict=True)
        ]
        _output.print_json({"model": lm.name, "patch": None, **_how(how), "answers": answers})
        return
    console = _output.out()
    console.print(repr(lm).strip("<>"), soft_wrap=True)
    table = _output.table("prompt", "answer")
    for number, (prompt, text, words) in enumerate(zip(prompts, says, likely, strict=True)):
        if number:
            table.add_section()
        table.add_row(_views.asked(prompt, how.chat), _views.top(words))
        table.add_row("  says", _views.said(text))
    console.print(table)


def _how(how: ChatOptions) -> dict[str, Any]:
    return {} if how.chat == "off" else {"chat": how.chat, "system": how.system}


def _answer(says: str, words: Sequence[tuple[str, float]]) -> dict[str, Any]:
    return {"says": says, "top": [{"token": word, "p": p} for word, p in words]}
