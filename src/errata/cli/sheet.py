"""`errata sheet`: corrections under version control, built into one patch and checked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _sheet_views, _signing, _targets, _views
from errata.cli._completion import editor_names, model_names
from errata.cli._endpoint import EndpointOptions
from errata.cli._options import ForceFlag, JsonFlag, ModelOptions, expand
from errata.cli._sheet import day_of, load_base, loaded_build, may_replace, opened, save_build
from errata.cli._sheet_served import check_served, status_served
from errata.errors import ConfigError, DataError, GateError

if TYPE_CHECKING:
    from errata.sheets.fact import Fact
    from errata.sheets.sheet import Sheet

app = typer.Typer(
    no_args_is_help=True,
    help="Fact sheets: corrections under version control, built into one patch and checked.",
    epilog=_output.examples(
        (
            "errata sheet init corrections",
            "errata sheet build corrections",
            "errata sheet check corrections",
        )
    ),
)

Folder = Annotated[
    Path, typer.Argument(metavar="SHEET", help="Folder of the sheet.", show_default=False)
]
At = Annotated[
    str | None,
    typer.Option(metavar="DAY", help="Facts that are valid on this day (2026-12-31), not today."),
]
Source = Annotated[
    Path | None,
    typer.Option("--patch", metavar="PATCH", help="The build; default: SHEET/patch."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="PATCH", help="Where to write it; default: SHEET/patch."),
]


@app.command(
    epilog=_output.examples(("errata sheet init corrections --model smollm2 --editor rome,ft",))
)
def init(
    folder: Folder = Path("."),
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="The base model.", autocompletion=model_names),
    ] = "pocket",
    editor: Annotated[
        str,
        typer.Option(
            "--editor", "-e", metavar="NAME[,NAME…]", autocompletion=editor_names,
            help="An editor, or several that are tried in turn for every fact.",
        ),
    ] = "rome",
) -> None:  # fmt: skip
    """Write a new sheet: errata.toml and facts/sample.jsonl with two facts to replace."""
    from errata.sheets import new_sheet

    names = tuple(name.strip() for name in editor.split(",") if name.strip())
    if not names:
        raise ConfigError("--editor names no editor", "Example: --editor rome,ft")
    new_sheet(folder, model, names)
    console = _output.out()
    console.print(f"Wrote {folder}/errata.toml and {folder}/facts/sample.jsonl.", soft_wrap=True)
    console.print(f"Next: errata sheet build {folder}", soft_wrap=True)


@app.command(
    epilog=_output.examples(
        (
            "errata sheet build corrections",
            "errata sheet build corrections --at 2027-01-01 --out next --json",
        )
    )
)
@expand
def build(
    model: ModelOptions,
    folder: Folder = Path("."),
    out: Out = None,
    at: At = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Edit all facts again, also those that did not change.")
    ] = False,
    sign: _signing.SignKey = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Make one patch out of all facts that are valid.

    Every fact is edited on its own, and the single patches are added up in the order of the sheet.
    Only facts that changed are edited again; the patch is bit for bit that of a build from nothing.
    """
    sheet, facts, _ = opened(folder, at)
    _signing.check_key(sign)
    _build(sheet, facts, model, out or folder / "patch", day_of(at), fresh, force, json, sign=sign)


def _build(
    sheet: Sheet,
    facts: Sequence[Fact],
    model: ModelOptions,
    out: Path,
    day: date | None,
    fresh: bool,
    force: bool,
    json: bool,
    told: dict[str, Any] | None = None,
    sign: Path | None = None,
) -> None:
    from errata.sheets.building import build as build_sheet
    from errata.sheets.building import check_facts, editors_of

    replaced = may_replace(out, sheet.folder, force)
    name = model.model if _targets.given(model) else sheet.config.model
    check_facts(facts, editors_of(sheet, name))  # before a model is loaded for nothing
    lm = load_base(sheet, model)
    label = f"{sheet.name}: {_output.counted(len(facts), 'fact')}"
    with _output.progress(label) as step:
        built = build_sheet(lm, sheet, at=day, fresh=fresh, progress=step)
    if sign is None:
        _signing.say_dropped([out], out)
    folder = save_build(built.patch, out, replaced)
    files, count = _output.folder_size(folder)
    signed = None if sign is None else _signing.sign(folder, sign)
    if json:
        saved = {"folder": str(folder), "files": files, "bytes": count}
        _output.print_json(
            {
                **(told or {}),
                "sheet": sheet.name,
                "model": lm.name,
                "facts": len(facts),
                "edited": list(built.made),
                "kept": list(built.kept),
                "left_out": list(built.left_out),
                "report": built.patch.report.as_dict(),
                "signed_by": signed,
                "patch": {**_views.facts(built.patch), "saved": saved},
            }
        )
        return
    _sheet_views.built(sheet, built, lm)
    console = _output.out()
    _output.saved(out, files, count)
    if signed is not None:
        console.print(f"Signed by {signed}.")
    console.print(f"Check it: errata sheet check {sheet.folder}", soft_wrap=True)


@app.command(
    epilog=_output.examples(
        (
            "errata sheet check corrections",
            "errata sheet check corrections --endpoint http://localhost:8000/v1"
            " --served-model corrected",
        )
    )
)
@expand
def check(
    model: ModelOptions,
    server: EndpointOptions,
    folder: Folder = Path("."),
    patch: Source = None,
    at: At = None,
    json: JsonFlag = False,
) -> None:
    """Ask whether a build does what the sheet says; exits with 3 if a gate of the sheet is missed.

    Every fact has to be taken, what `holds` names has to follow, and what `keeps` names must not
    have moved; the gates in errata.toml say how much of it. A patch that was built of other facts
    than the sheet holds now fails as well.
    """
    from errata.sheets.checking import ask, missed, rates, stale

    server.check()
    sheet, facts, left = opened(folder, at)
    source = patch or folder / "patch"
    loaded = loaded_build(source, folder)
    old = stale(sheet, facts, loaded)
    if server.endpoint is not None:
        if old is not None:
            raise GateError(old, f"errata sheet build {folder}")
        check_served(sheet, facts, loaded, source, server, json)
        return
    lm = load_base(sheet, model)
    loaded.check(lm)
    with _output.status("asking for the facts"):
        found = ask(lm, facts, loaded)
    said = ([] if old is None else [old]) + missed(sheet.gates, found, loaded)
    if json:
        _output.print_json(
            {
                "sheet": sheet.name,
                "patch": str(source),
                "model": lm.name,
                "passed": not said,
                "missed": said,
                "rates": {k: {"right": a, "of": b} for k, (a, b) in rates(found).items()},
                "left_out": left,
                "results": [one.as_dict() for one in found],
            }
        )
    else:
        _sheet_views.checked(f"{sheet.name} · {source} · {lm.name}", found, loaded)
    if said:
        raise GateError(
            "gate missed: " + "; ".join(said),
            None if old is None else f"errata sheet build {folder}",
        )


@app.command(
    epilog=_output.examples(
        (
            "errata sheet status corrections",
            "errata sheet status corrections --endpoint http://localhost:8000/v1 --json",
        )
    )
)
@expand
def status(
    model: ModelOptions,
    server: EndpointOptions,
    folder: Folder = Path("."),
    patch: Source = None,
    at: At = None,
    json: JsonFlag = False,
) -> None:
    """Say which facts hold: on the base model, and under the build if there is one.

    With --endpoint on a running server instead; no model is loaded, and no build is needed.
    """
    from errata.sheets.checking import ask, stale

    server.check()
    sheet, facts, left = opened(folder, at)
    source = patch or folder / "patch"
    loaded = loaded_build(source, folder) if patch or (source / "patch.json").is_file() else None
    old = None if loaded is None else stale(sheet, facts, loaded)
    if server.endpoint is not None:
        recorded = None if old is not None or loaded is None else loaded.report
        status_served(sheet, facts, recorded, server, day_of(at), left, json)
        return
    lm = load_base(sheet, model)
    if loaded is not None:
        loaded.check(lm)
    with _output.status("asking for the facts"):
        found = ask(lm, facts, loaded)
    if json:
        _output.print_json(
            {
                "sheet": sheet.name,
                "model": lm.name,
                "patch": None if loaded is None else str(source),
                "changed": old,
                "left_out": left,
                "facts": _sheet_views.status_of(sheet, found, day_of(at)),
            }
        )
        return
    head = f"{sheet.name} · {lm.name}" + ("" if loaded is None else f" · {source}")
    rows = _sheet_views.status_of(sheet, found, day_of(at))
    _sheet_views.status(head, rows, None if loaded is None else "patched")
    if loaded is None:
        _output.note(f"no build yet: errata sheet build {folder}")
    if old is not None:
        _output.note(f"{old}; errata sheet build {folder}")


@app.command(
    epilog=_output.examples(
        (
            "errata sheet diff last-week corrections/patch",
            "errata sheet diff last-week corrections/patch --json",
        )
    )
)
def diff(
    one: Annotated[
        Path, typer.Argument(metavar="A", help="A sheet, or a build.", show_default=False)
    ],
    two: Annotated[
        Path, typer.Argument(metavar="B", help="Another one.", show_default=False)
    ],
    json: JsonFlag = False,
) -> None:  # fmt: skip
    """Say in words what is different between two sheets, or two builds.

    Of two builds also which neighbours of the facts moved under one and not under the other.
    """
    from errata.sheets import difference

    found = difference(one, two)
    if json:
        _output.print_json({"a": str(one), "b": str(two), **found.as_dict()})
        return
    _sheet_views.difference(found)


@app.command(
    epilog=_output.examples(
        ("errata sheet schema --out corrections/.schemas", "errata sheet schema facts")
    )
)
def schema(
    of: Annotated[
        str, typer.Argument(metavar="errata|fact|facts", help="errata.toml, a line, a YAML file.")
    ] = "errata",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Write all three here instead."),
    ] = None,
) -> None:
    """Print what a sheet may say as JSON Schema, for editors that complete and check it."""
    from errata.config import did_you_mean
    from errata.sheets.schema import schemas, write_schemas

    known = {name.partition(".")[0]: found for name, found in schemas().items()}
    if of not in known:
        raise ConfigError(f"no schema {of!r}", did_you_mean(of, known))
    if out is None:
        _output.print_json(known[of])
        return
    for path in write_schemas(out):
        _output.out().print(f"Wrote {path}.", soft_wrap=True)


@app.command(epilog=_output.examples(("errata sheet remove corrections capital-of-italy",)))
@expand
def remove(
    model: ModelOptions,
    folder: Annotated[Path, typer.Argument(metavar="SHEET", help="Folder of the sheet.")],
    fact: Annotated[str, typer.Argument(metavar="ID", help="Id of the fact.")],
    out: Out = None,
    rebuild: Annotated[
        bool, typer.Option("--build/--no-build", help="Build what is left, or only take it out.")
    ] = True,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Take one fact out of the sheet's files, and build what is left.

    The patch is bit for bit what it would be had the fact never been there.
    """
    from errata.sheets import load_sheet, without_fact

    sheet = load_sheet(folder)
    gone = sheet.find(fact)
    target = out or folder / "patch"
    if rebuild:
        may_replace(target, folder, force)
        if not any(other.id != fact for other in sheet.valid()):
            raise DataError(
                f"without {fact} no fact of {folder} is valid, and there is nothing to build",
                "Take it out alone: --no-build",
            )
    path = without_fact(sheet, fact)
    if not json:
        said = f"Out of {path}: {gone.prompts[0]!r} → {gone.target.strip()!r}"
        _output.out().print(said, soft_wrap=True)
    told = {"removed": fact, "file": str(path)}
    if not rebuild:
        if json:
            _output.print_json(told)
        return
    left, facts, _ = opened(folder, None)
    _build(left, facts, model, target, None, False, force, json, told)
