"""`errata sheet check` and `status` with `--endpoint`: a running server is asked for the facts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from errata.cli import _output, _sheet_views
from errata.cli._endpoint import EndpointOptions, Wanted, verify_served
from errata.cli._gates import Gate
from errata.cli._options import ChatOptions

if TYPE_CHECKING:
    from errata.patch import Patch
    from errata.patch.report import Report
    from errata.sheets.fact import Fact
    from errata.sheets.sheet import Sheet


def check_served(
    sheet: Sheet,
    facts: Sequence[Fact],
    patch: Patch,
    source: Path,
    server: EndpointOptions,
    json: bool,
) -> None:
    """Ask a server whether it holds a build; every edit has to be there, whatever `taken` says.

    Args:
        sheet: The sheet.
        facts: Those that are valid.
        patch: The build.
        source: Where it lies.
        server: Who is asked.
        json: Whether to print one document.

    Raises:
        GateError: If an edit is not there, or a gate of the sheet is missed.
        EndpointError: If the server does not answer.
    """
    from errata.sheets.checking import cases_of

    gates = []
    if any(fact.holds for fact in facts):
        gates.append(Gate("generality", sheet.gates.holds))
    if server.endpoint_base is not None and any(fact.keeps for fact in facts):
        gates.append(Gate("locality", sheet.gates.keeps))
    most = sheet.gates.neighbours
    wanted = Wanted(gates, [] if most is None else [Gate("neighbours", most)], False)
    verify_served(
        source, sheet.name, cases_of(facts), patch.report, server, wanted, ChatOptions(), json, None
    )


def status_served(
    sheet: Sheet,
    facts: Sequence[Fact],
    report: Report | None,
    server: EndpointOptions,
    day: date | None,
    left: Sequence[str],
    json: bool,
) -> None:
    """Say which facts hold on a server.

    Args:
        sheet: The sheet.
        facts: Those that are valid.
        report: What the build recorded of them, if there is one of these very facts.
        server: Who is asked.
        day: The day on which facts are valid or not; None: today.
        left: What is said of those that are not.
        json: Whether to print one document.

    Raises:
        EndpointError: If the server does not answer.
    """
    from errata.sheets.serving import ask_facts

    client, base = server.clients()
    with _output.progress("asking the server") as step:
        found, failed = ask_facts(client, facts, base=base, report=report, progress=step)
    rows = _sheet_views.status_of(sheet, found, day, "served")
    if json:
        beside = None if base is None else {"url": base.endpoint.url, "model": base.endpoint.model}
        told = {
            "sheet": sheet.name,
            "endpoint": client.endpoint.url,
            "served_model": client.endpoint.model,
            "base": beside,
            "not_answered": failed,
            "left_out": list(left),
            "facts": rows,
        }
        _output.print_json(told)
        return
    where = f"{client.endpoint.model or 'its model'} at {client.endpoint.url}"
    _sheet_views.status(f"{sheet.name} · {where}", rows, "served")
    for reason, count in failed.items():
        _output.note(f"{_output.counted(count, 'question')} not answered: {reason}")
