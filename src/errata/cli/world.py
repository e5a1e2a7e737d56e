"""`errata world`: the built-in world, its text, its benchmark and the pocket model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output
from errata.cli._options import ForceFlag, JsonFlag, ModelOptions, expand

if TYPE_CHECKING:
    from errata.world.world import World

app = typer.Typer(
    no_args_is_help=True,
    help="The built-in world of facts: look at it, build its benchmark and its model.",
    epilog=_output.examples(
        (
            "errata world facts --about France",
            "errata world bench --out world-bench",
            "errata world build --out my-pocket --steps 200",
        )
    ),
)

Scale = Annotated[str, typer.Option(help="Size of the world: pocket or test.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything invented.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to.")]


def _world(scale: str, seed: int) -> World:
    from errata.world import build_world

    return build_world(scale, seed)


@app.command(
    epilog=_output.examples(("errata world facts", "errata world facts --about France --json"))
)
def facts(
    about: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only facts in which this name occurs.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Print at most this many facts.")] = 20,
    scale: Scale = "pocket",
    seed: Seed = 0,
    json: JsonFlag = False,
) -> None:
    """Print what is true in the world."""
    world = _world(scale, seed)
    wanted = None if about is None else about.casefold()
    rows = []
    for fact in world.facts:
        head, tail = world.entities[fact.head], world.entities[fact.tail]
        names = (head.label, *head.aliases, tail.label, *tail.aliases)
        if wanted is None or wanted in (name.casefold() for name in names):
            relation = world.relations[fact.relation]
            rows.append({"head": head.label, "relation": relation.label, "tail": tail.label})
    counts = {
        "entities": len(world.entities),
        "relations": len(world.relations),
        "facts": len(world.facts),
        "two_hop_questions": len(world.hops),
        "domains": len({entity.domain for entity in world.entities.values()}),
    }
    if json:
        _output.print_json(
            {"scale": scale, "seed": seed, **counts, "found": len(rows), "list": rows[:limit]}
        )
        return
    console = _output.out()
    console.print(", ".join(f"{number:,} {name}" for name, number in counts.items()))
    table = _output.table("of", "the", "is")
    for row in rows[:limit]:
        table.add_row(row["head"], row["relation"], row["tail"])
    console.print(table)
    if len(rows) > limit:
        console.print(f"… and {len(rows) - limit:,} more (--limit)")


@app.command(epilog=_output.examples(("errata world text --limit 5",)))
def text(
    limit: Annotated[int, typer.Option(min=1, help="Number of sentences.")] = 20,
    scale: Scale = "pocket",
    seed: Seed = 0,
    json: JsonFlag = False,
) -> None:
    """Print sentences of the text that the pocket model is trained on."""
    from errata.world import texts

    lines = texts(_world(scale, seed), limit)
    if json:
        _output.print_json({"scale": scale, "seed": seed, "sentences": lines})
        return
    for line in lines:
        typer.echo(line)


@app.command(
    epilog=_output.examples(
        (
            "errata world bench --out world-bench",
            "errata eval --editor rome --data uniedit:world-bench/test",
        )
    )
)
def bench(
    out: Out,
    variants: Annotated[
        int, typer.Option(min=1, help="Records per fact in the training split.")
    ] = 1,
    scale: Scale = "pocket",
    seed: Seed = 0,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Write the world's benchmark in UniEdit's layout: <split>/<domain>.json."""
    from errata.world import write_benchmark

    _output.check_free(out, "test", force)
    with _output.status("writing the benchmark"):
        counts = write_benchmark(_world(scale, seed), out, variants, seed)
    if json:
        _output.print_json({"folder": str(out), "scale": scale, "seed": seed, "records": counts})
        return
    table = _output.table("split", "records", right=(1,))
    for split, number in counts.items():
        table.add_row(split, f"{number:,}")
    _output.out().print(table)
    _output.out().print(f"Saved {out}/", soft_wrap=True)


@app.command(
    epilog=_output.examples(
        (
            "errata world samples --out samples",
            "errata eval --editor rome --data counterfact:sample",
        )
    )
)
def samples(
    out: Out,
    scale: Scale = "pocket",
    seed: Seed = 0,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Write a few records in the format of every published data set, as --data NAME:sample has."""
    from errata.world import write_samples

    _output.check_free(out, "counterfact.json", force)
    with _output.status("writing the samples"):
        counts = write_samples(_world(scale, seed), out)
    if json:
        _output.print_json({"folder": str(out), "scale": scale, "seed": seed, "records": counts})
        return
    table = _output.table("file", "records", right=(1,))
    for name, number in counts.items():
        table.add_row(name, f"{number:,}")
    _output.out().print(table)
    _output.out().print(f"Saved {out}/", soft_wrap=True)


@app.command(
    epilog=_output.examples(
        (
            "errata world build --out my-pocket --steps 200",
            "errata world build --out my-pocket --resume",
        )
    )
)
def build(
    out: Out,
    scale: Scale = "pocket",
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda …")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Train a model on the world and write it as a transformers folder (hours on a CPU)."""
    _output.check_free(out, "config.json", force)
    import torch

    from errata.world import build as train

    if threads is not None:
        torch.set_num_threads(threads)
    with _output.progress(f"training on the {scale} world") as step:
        card = train(
            out,
            scale,
            seed,
            steps,
            resume,
            device,
            lambda facts: step(facts["step"], facts["steps"]),
        )
    if json:
        _output.print_json({"folder": str(out), **card})
        return
    _knowledge(card["knowledge"])
    _output.out().print(f"Saved {out}/ after {_output.seconds(card['seconds'])}", soft_wrap=True)


@app.command(
    epilog=_output.examples(
        ("errata world measure", "errata world measure --model my-pocket --limit 500 --json")
    )
)
@expand
def measure(
    model: ModelOptions,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions per kind; else all.")] = None,
    scale: Scale = "pocket",
    seed: Seed = 0,
    json: JsonFlag = False,
) -> None:
    """Measure what a model knows of the world: whole answers, generated greedily."""
    lm = model.load()
    from errata.world import measure as score

    with _output.status("asking the world's questions"):
        found = score(lm.model, lm.tokenizer, _world(scale, seed), limit)
    if json:
        _output.print_json({"model": lm.name, "scale": scale, "seed": seed, **found})
        return
    _knowledge(found)


def _knowledge(found: dict[str, Any]) -> None:
    table = _output.table("kind of question", "right", "questions", right=(1, 2))
    counts: Counter[str] = Counter(found.get("counts", {}))
    for kind, share in found.items():
        if isinstance(share, float):
            table.add_row(kind.replace("_", " "), _output.rate(share), f"{counts[kind]:,}")
    _output.out().print(table)
