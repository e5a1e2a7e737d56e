"""`errata trace`: which blocks recall what a model knows, as a heat map; `layer=auto` uses it."""

from __future__ import annotations

import json as jsonlib
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import _heatmap, _output, _views
from errata.cli._completion import model_names
from errata.cli._options import ForceFlag, JsonFlag, LoadOptions, expand
from errata.errors import RunError

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.tracing.effects import Trace

EXAMPLES = (
    "errata trace pocket",
    "errata trace gpt2-xl --limit 1000 --out gpt2-xl.png",
    "errata trace ./my-model --data facts.json --kind ffn --json",
)
_TRACE = "Trace"


class Kind(StrEnum):
    """What is restored."""

    all = "all"
    hidden = "hidden"
    ffn = "ffn"
    attn = "attn"


@expand
def trace(
    load: LoadOptions,
    model: Annotated[
        str,
        typer.Argument(help="pocket, a local folder, or a Hub id.", autocompletion=model_names),
    ] = "pocket",
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            metavar="NAME|NAME:PATH|FILE",
            help="Facts with their true answers: world (default for pocket), known_1000 (default"
            " otherwise), counterfact …, or a .json or .jsonl file with the fields subject, prompt"
            " and attribute.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set.")] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Facts to trace, of those that the model knows.")
    ] = 100,
    kind: Annotated[
        Kind,
        typer.Option(help="What is restored: the hidden state, the output of FFN or attention."),
    ] = Kind.all,
    samples: Annotated[
        int, typer.Option(min=1, help="Draws of noise per fact.", rich_help_panel=_TRACE)
    ] = 10,
    noise: Annotated[
        float,
        typer.Option(
            help="Noise on the subject, relative to the spread of the subjects' embeddings.",
            rich_help_panel=_TRACE,
        ),
    ] = 3.0,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Blocks in which FFN or attention is restored together; default 10, and a third"
            " of the depth in models of fewer than 30 blocks.",
            rich_help_panel=_TRACE,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the noise and of the order of the facts.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.png|DIR",
            help="Draw the heat map (also .svg, .pdf); into a folder, trace.json goes with it.",
        ),
    ] = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Find the blocks that recall what a model knows, by causal tracing.

    The subject of known facts is corrupted by noise, then single clean states are restored; how
    much of the answer's probability returns is their effect. The result is kept in the cache:
    asking again is instant, and layer=auto of the editors uses the choice.
    """
    files = _files(out, force)
    from errata.api import trace as run
    from errata.data._facts import default_facts

    lm = load.load_named(model)
    started = time.perf_counter()
    data = data or default_facts(model)
    kinds = ("hidden", "ffn", "attn") if kind is Kind.all else (kind.value,)
    try:
        with _output.progress(f"tracing {lm.name} on {data}") as step:
            found = run(
                lm,
                data,
                limit=limit,
                split=split,
                kinds=kinds,
                progress=step,
                samples=samples,
                noise=noise,
                window=window or "auto",
                seed=seed,
            )
    except KeyboardInterrupt:
        _output.note("stopped; the same command goes on with the facts that are left")
        raise
    _write(found, files)
    seconds = time.perf_counter() - started
    if json:
        document = {**found.as_dict(), "files": list(map(str, files)), "seconds": seconds}
        _output.print_json(document)
    else:
        _print(lm, found, files, seconds)


def _files(out: Path | None, force: bool) -> list[Path]:
    """Return the files to write, refused before the work rather than after it.

    Raises:
        RunError: If one exists or cannot be written.
        ConfigError: If the format of a picture is unknown.
        MissingExtra: If pictures cannot be drawn here.
    """
    if out is None:
        return []
    folder = not out.suffix or out.is_dir()
    files = [out / "trace.png", out / "trace.json"] if folder else [out]
    _heatmap.check_picture(files[0])
    for file in files:
        if file.exists() and not force:
            raise RunError(f"{file} already exists", "Choose another --out, or add --force.")
    _output.check_free(files[0].parent, "", True)
    return files


def _write(found: Trace, files: list[Path]) -> None:
    from errata.store.files import write_together

    made: dict[Path, bytes] = {}
    for file in files:
        if file.suffix == ".json":
            text = jsonlib.dumps(found.as_dict(), indent=1, allow_nan=False)
            made[file] = f"{text}\n".encode()
        else:
            made[file] = _heatmap.picture(found, file)
    if made:
        write_together(made)


def _print(lm: LM, found: Trace, files: list[Path], seconds: float) -> None:
    console = _output.out()
    console.print(_views.headline(lm))
    console.print(
        f"{len(found)} facts of {found.data} that it knows, of {found.asked} asked · "
        f"{found.settings.samples} draws of noise of {found.std:.3g} · {_output.seconds(seconds)}"
    )
    console.print(
        f"Probability of the answer: {float(found.clean.mean()):.3f}, with the subject corrupted "
        f"{float(found.corrupted.mean()):.3f}."
    )
    for kind in found.effects:
        console.print(_heatmap.table_of(found, kind))
    for line in _said(found):
        console.print(line, soft_wrap=True)
    if files:
        console.print(f"Saved {', '.join(map(str, files))}.", soft_wrap=True)


def _said(found: Trace) -> list[str]:
    chosen = found.choice()
    if chosen is None:
        return ["No choice of blocks: it needs --kind ffn or all."]
    blocks = ", ".join(map(str, chosen.layers))
    return [
        f"Choice: block {chosen.layer}, where restoring the FFN at the subject's last token regains"
        f" most ({chosen.effect:.3f}; the same block in {chosen.agreement:.0%} of resamples).",
        f"Editors of several blocks: {blocks}. Kept for layer=auto of models without published"
        " settings.",
    ]
