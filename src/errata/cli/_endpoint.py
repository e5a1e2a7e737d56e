"""`errata verify --endpoint`: the same questions, asked of a running server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _targets
from errata.cli._gates import Gate, check_gates, check_limits
from errata.errors import ConfigError, GateError, PatchError

if TYPE_CHECKING:
    from errata.case import Case, Edit
    from errata.inspection.served import Answer, Served
    from errata.patch.report import Report
    from errata.served import Client

_PANEL = "A running server"


@dataclass(frozen=True)
class EndpointOptions:
    """Which server is asked."""

    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Ask a running OpenAI-compatible server (vLLM, llama.cpp, Ollama), not a model "
            "here. Exits with 3 unless every edit is there. The key comes from "
            "ERRATA_ENDPOINT_KEY or OPENAI_API_KEY.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    served_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the edited model there; not needed where it serves one.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    endpoint_base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|URL",
            help="The unedited model: its name on the same server, or another server. Without it, "
            "what the patch recorded counts as before.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds to wait for one answer.", rich_help_panel=_PANEL),
    ] = 60.0
    retries: Annotated[
        int,
        typer.Option(
            min=0, help="Times a request is made again where that may help.",
            rich_help_panel=_PANEL,
        ),
    ] = 4  # fmt: skip
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Requests at once.", rich_help_panel=_PANEL)
    ] = 4

    def check(self) -> None:
        """Refuse flags about a server where none is asked.

        Raises:
            ConfigError: Names the flag.
        """
        for flag, value in (
            ("--served-model", self.served_model),
            ("--endpoint-base", self.endpoint_base),
        ):
            if value is not None and self.endpoint is None:
                raise ConfigError(f"{flag} is for --endpoint", "Add --endpoint URL.")

    def clients(self) -> tuple[Client, Client | None]:
        """Return who asks the edited model, and who asks the unedited one.

        Raises:
            ConfigError: If an address is none, or two names are the same.
            EndpointError: If nothing answers, or a model is not there.
        """
        from errata.inspection.served import check_model
        from errata.served import Client, Endpoint

        assert self.endpoint is not None
        how = {"timeout": self.timeout, "retries": self.retries, "workers": self.workers}
        own = Endpoint.of(self.endpoint, self.served_model, **how)
        base = None
        if self.endpoint_base is not None:
            if "://" in self.endpoint_base:
                base = Endpoint.of(self.endpoint_base, **how)
            else:
                base = replace(own, model=self.endpoint_base)
            if base.url == own.url and base.model == own.model:
                raise ConfigError(
                    "--endpoint-base is the edited model itself", "Name the unedited model."
                )
        client = Client(own)
        named = {} if self.served_model is None else {"--served-model": self.served_model}
        if base is not None and base.url == own.url:
            named["--endpoint-base"] = base.model
        there = check_model(client, named)
        if not own.model and there:
            others = [name for name in there if base is None or name != base.model]
            if len(others) != 1:
                raise ConfigError(
                    f"{own.url} serves {', '.join(there[:8])}", "Say which: --served-model NAME"
                )
            client = Client(replace(own, model=others[0]))
        if base is None:
            return client, None
        beside = Client(base)
        if not base.model:
            known = check_model(beside, {})
            beside = Client(replace(base, model=known[0] if known else ""))
        return client, beside


def edits_of(target: Path, optional: bool = False) -> tuple[tuple[Edit, ...], Report | None]:
    """Return the edits of a patch or of an export, and what was recorded of them; no model loads.

    Args:
        target: The patch.
        optional: Whether an export without a record has no edits, and is no error.

    Raises:
        PatchError: If there is no record of any.
    """
    from errata.patch import Patch
    from errata.patch.adapter import recorded_patch
    from errata.patch.card import read_record

    kind = _targets.kind_of(target)
    if kind in (_targets.ADAPTER, _targets.GGUF, _targets.MODEL):
        record = read_record(target.parent if target.is_file() else target)
        if record is None and optional:
            return (), None
        if record is None:
            raise PatchError(
                f"{target} has no record of its edits",
                "Give the patch folder, or what is to be asked: --cases FILE",
            )
        patch = recorded_patch(record, target)
    else:
        patch = Patch.load(target)
    return patch.edits, patch.report


@dataclass(frozen=True)
class Wanted:
    """What has to hold of a server.

    Attributes:
        gates: Smallest rates.
        limits: Largest shares of what else moved.
        require: Whether every question has to pass, not only the edits.
    """

    gates: list[Gate]
    limits: list[Gate]
    require: bool

    def check(self) -> None:
        """Refuse what a server cannot tell.

        Raises:
            ConfigError: Names the metric.
        """
        for limit in self.limits:
            if limit.metric.startswith("sentences"):
                raise ConfigError(
                    f"--fail-over {limit.metric}: a server does not tell the probabilities of all "
                    "tokens",
                    "Check it on the patch itself, without --endpoint.",
                )


def verify_served(
    target: Path,
    name: str,
    cases: Sequence[Case],
    report: Report | None,
    how: EndpointOptions,
    wanted: Wanted,
    chat: Any,
    json: bool,
    out: Path | None,
) -> None:
    """Ask a server and say what it holds.

    Args:
        target: The patch.
        name: What is asked.
        cases: The questions.
        report: What the patch recorded; None: neighbours are not asked.
        how: The server.
        wanted: What has to hold.
        chat: How questions are put.
        json: Whether to print one document.
        out: Where answers are kept.

    Raises:
        GateError: If an edit is not there, or a gate is missed.
        EndpointError: If the server does not answer.
    """
    from errata.inspection.served import ask_server, askable, questions_of

    wanted.check()
    client, base = how.clients()
    questions = questions_of(cases, report, chat.chat, chat.system)
    left_out = sum(not askable(probe) for case in cases for probe in case.probes)
    if left_out:
        _output.note(
            f"{_output.counted(left_out, 'question')} not asked: comparisons of likelihoods and "
            "questions with conditions need the model itself (errata verify without --endpoint)"
        )
    with _output.progress("asking the server") as step:
        served = ask_server(client, questions, base=base, progress=step)
    document = _document(target, name, served, client, base)
    if out is not None:
        _output.write_json(out / "served.json", document)
    if json:
        _output.print_json(document)
    else:
        _show(target, name, served, client, base, out)
    _check(served, client, wanted)


def _check(served: Served, client: Client, wanted: Wanted) -> None:
    rates = served.rates()
    missed = []
    absent = [one for one in served.edits if one.ok is False]
    if served.unedited:
        missed.append(
            f"{client.endpoint.model or client.endpoint.url} answers as the unedited model: "
            f"{served.unedited}. Is the adapter applied?"
        )
    elif absent:
        missed.append(f"{_output.counted(len(absent), 'edit')} not there")
    failed = [one for one in served.facts if one.ok is False]
    if wanted.require and len(failed) > len(absent):
        missed.append(f"{_output.counted(len(failed), 'question')} failed, required none")
    if served.unasked:
        missed.append(f"{_output.counted(len(served.unasked), 'question')} not answered")
    try:
        check_gates(wanted.gates, rates)
    except GateError as error:
        missed.append(error.message.removeprefix("gate missed: "))
    check_limits(wanted.limits, served.report.metrics(), missed)


def _document(
    target: Path, name: str, served: Served, client: Client, base: Client | None
) -> dict[str, Any]:
    told = served.report
    facts = served.facts
    return {
        "patch": str(target),
        "data": name,
        "endpoint": client.endpoint.url,
        "served_model": client.endpoint.model,
        "base": None if base is None else {"url": base.endpoint.url, "model": base.endpoint.model},
        "counts": {
            "questions": len(facts),
            "passed": sum(one.ok is True for one in facts),
            "failed": sum(one.ok is False for one in facts),
            "not_judged": sum(one.ok is None for one in facts),
            "not_answered": len(served.unasked),
        },
        **{key: value for key, value in served.rates().items() if key != "failed"},
        "unedited": served.unedited,
        "neighbourhood": {
            "line": told.line(),
            "asked": len(told.neighbours),
            "moved": len(told.moved),
            "metrics": told.metrics(),
        },
        "results": [one.as_dict() for one in served.answers],
    }


def _show(
    target: Path, name: str, served: Served, client: Client, base: Client | None, out: Path | None
) -> None:
    from rich.text import Text

    console = _output.out()
    where = f"{target} · {client.endpoint.model or 'its model'} at {client.endpoint.url}"
    beside = "" if base is None else f" · beside {base.endpoint.model or base.endpoint.url}"
    console.print(where + beside, soft_wrap=True)
    facts = served.facts
    judged = [one for one in facts if one.ok is not None]
    right = sum(one.ok is True for one in judged)
    console.print(f"{name}: {right} of {_output.counted(len(judged), 'question')} passed")
    for one in facts:
        if one.ok is True and one.question.kind == "edit":
            _line(console, one, Text("✓ ", "bold green"))
        elif one.ok is False:
            _line(console, one, Text("✗ ", "bold red"))
    left = [one for one in served.answers if one.ok is None and one.error is None]
    if left:
        _output.note(
            f"{_output.counted(len(left), 'question')} not judged: what the unedited model says "
            "is not known (--endpoint-base)"
        )
    for reason, count in _reasons(served.unasked).items():
        console.print(Text(f"{_output.counted(count, 'question')} not answered: {reason}"))
    if served.report.line():
        console.print(Text(served.report.line()))
    elif not served.of("neighbour"):
        _output.note("no neighbours on record: nothing beside the edits was asked")
    if out is not None:
        console.print(f"Answers: {out}/served.json", soft_wrap=True)


def _line(console: Any, one: Answer, mark: Any) -> None:
    from rich.text import Text

    asked = one.question.asked
    text = Text.assemble(mark, asked.prompt, " → ", (asked.target.strip(), "bold"))
    if one.probability is not None:
        before = one.question.p_before
        told = f"{one.probability:.4f}"
        text.append(f"  {told}" if before is None else f"  {before:.4f} → {told}")
    console.print(text)
    if one.ok is False:
        says = " ".join((one.says or "").split())
        console.print(Text(f"    says “{says}” ({one.question.kind})"))


def _reasons(answers: Sequence[Answer]) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for one in answers:
        found[one.error or ""] = found.get(one.error or "", 0) + 1
    return found
