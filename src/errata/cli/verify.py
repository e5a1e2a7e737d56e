"""`errata verify`: is a finished patch what it should be? A gate before it ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _facts, _output, _signing, _summary, _targets, _views
from errata.cli._completion import data_names
from errata.cli._endpoint import EndpointOptions, Wanted, edits_of, verify_served
from errata.cli._gates import (
    check_gates,
    check_limits,
    check_names,
    metrics_of,
    parse_gates,
    parse_limits,
)
from errata.cli._options import (
    ChatOptions,
    ForceFlag,
    Gates,
    JsonFlag,
    Limits,
    ModelOptions,
    Neighbours,
    expand,
)
from errata.errors import ConfigError, ErrataError, PatchError
from errata.inspection.soundness import check_answers

if TYPE_CHECKING:
    from errata.case import Case, Edit
    from errata.data import LoadedData
    from errata.model.lm import LM
    from errata.patch import Patch
    from errata.patch.report import Report

EXAMPLES = (
    "errata verify rome-france",
    "errata verify rome-france --cases checks.jsonl",
    "errata verify rome-france --cases checks.jsonl --fail-under reliability=0.95"
    " --fail-under locality=0.9",
    "errata verify rome-france --require --fail-over neighbours=0.1 --fail-over sentences=0.05",
    "errata verify rome-france --cases counterfact:counterfact.json --limit 100 --json",
    "errata verify rome-france --endpoint http://localhost:8000/v1 --served-model rome-france",
    "errata verify rome-france --signed-by team.key.pub",
)
VERIFIED = "verified.json"
"""What the last check of a patch found; in its folder."""
OWN = "the patch's own edits"

Cases = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME:PATH",
        help="Questions to ask: cases with probes, or edits as `errata edit --edits` takes"
        " them; default: the edits that the patch itself names. See `errata ls datasets`.",
        autocompletion=data_names,
    ),
]


@dataclass(frozen=True)
class GateOptions:
    """What has to hold."""

    fail_under: Gates = None
    fail_over: Limits = None
    neighbours: Neighbours = True
    require: Annotated[
        bool, typer.Option("--require", help="Exit with 3 unless every question passes.")
    ] = False
    signed_by: _signing.SignedBy = None

    def only_signed(self, patch: Path, json: bool, asked: bool) -> bool:
        """Check the signature, if that is wanted; whether it is all that is wanted.

        Args:
            patch: The patch.
            json: Whether a document is printed.
            asked: Whether questions are asked, gates left aside.
        """
        if self.signed_by is None:
            return False
        alone = not (asked or self.require or self.fail_under or self.fail_over)
        _signing.check_signed(patch, self.signed_by, json, alone)
        return alone


@expand
def verify(
    patch: Annotated[
        Path, typer.Argument(help="A patch folder, or a LoRA folder.", show_default=False)
    ],
    model: ModelOptions,
    gate: GateOptions,
    chat: ChatOptions,
    server: EndpointOptions,
    cases: Cases = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first N cases.")] = None,
    top_k: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rank that counts as a hit for probes; 5 is that of the published protocol."
            " Edits count at rank 1.",
        ),
    ] = 1,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave broken records out instead of stopping.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="RUN", help="Also write records and a summary there."),
    ] = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record/--no-record",
            help=f"Leave the result in the patch folder ({VERIFIED}) for `errata show`.",
        ),
    ] = True,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Check a finished patch: are its facts there, do they generalise, did anything else move?

    Names every question that fails, with what was expected and what the model says instead. The
    edits inside each case are asked for, not carried out. With --endpoint they are asked of a
    running server, and no model is loaded here.
    """
    server.check()
    gates = parse_gates(gate.fail_under)
    limits = parse_limits(gate.fail_over, gate.neighbours)
    chat.check()
    if gate.only_signed(patch, json, any(one is not None for one in (cases, server.endpoint, out))):
        return
    if cases is None and (split is not None or limit is not None or skip_bad):
        raise ConfigError("--split, --limit and --skip-bad belong to --cases", "Add --cases FILE.")
    data = None
    if cases is not None:
        from errata.data import load_cases

        data = load_cases(cases, split, limit, skip_bad=skip_bad)
        _summary.say_notes(data)
        check_names(gates, data.cases)
    if server.endpoint is not None:
        edits, recorded = edits_of(patch, optional=data is not None)
        data = _own(edits, patch) if data is None else data
        check_names(gates, data.cases)
        wanted = Wanted(gates, limits, gate.require)
        around = recorded if gate.neighbours else None
        verify_served(patch, data.name, data.cases, around, server, wanted, chat, json, out)
        return
    loaded, lm = _targets.patch_and_model(patch, model)
    check_answers(loaded, lm)
    if data is None:
        data = _own(loaded.edits, patch)
        check_names(gates, data.cases)
    from errata.api import FixedPatch
    from errata.evaluation import evaluate

    _ = lm.spec  # found before anything is installed in the model
    with _output.progress("verifying") as step:
        result = evaluate(
            lm, FixedPatch(loaded), data, top_k=top_k, chat=chat.chat, system=chat.system,
            progress=step, out=out, force=force,
        )  # fmt: skip
    with _output.status("asking what failed again"):
        found = _facts.facts_of(result.records, lm, loaded)
    around = _around(lm, loaded) if gate.neighbours else None
    checked = _Checked(patch, data.name, result.summary, found, around)
    if result.summary.get("collisions"):
        _output.note(
            f"{_output.counted(result.summary['collisions'], 'question')} left out: about facts "
            "that another case edits"
        )
    if out is not None:
        _output.write_json(out / "results.json", {"counts": checked.counts, "results": found})
    if record:
        _record(checked)
    if json:
        _output.print_json(checked.document())
    else:
        head = f"{patch} · {_views.what_changed(loaded)} · {lm.name}"
        _show(checked, head, out)
    failed = checked.counts["failed"] if gate.require else None
    check_gates(gates, result.summary, result.summary["failed"], failed)
    check_limits(limits, {} if around is None else around.metrics())


@dataclass(frozen=True)
class _Checked:
    """What was found of a patch.

    Attributes:
        folder: The patch.
        name: What was asked.
        summary: Of the evaluation.
        found: Every case with its questions.
        around: What else moved, if it was asked.
    """

    folder: Path
    name: str
    summary: Mapping[str, Any]
    found: Sequence[Mapping[str, Any]]
    around: Report | None

    @property
    def counts(self) -> dict[str, int]:
        """Questions, and how many of them failed."""
        return _facts.counts(self.found)

    @property
    def moved(self) -> dict[str, Any] | None:
        """What else moved, as JSON values."""
        if self.around is None:
            return None
        told = self.around.as_dict()
        return {name: told[name] for name in ("line", "neighbours", "bare", "sentences")}

    def document(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "patch": str(self.folder),
            **self.summary,
            "counts": self.counts,
            "results": self.found,
            "neighbourhood": self.moved,
        }


def _show(checked: _Checked, head: str, out: Path | None) -> None:
    console = _output.out()
    console.print(head, soft_wrap=True)
    top_k = checked.summary["top_k"]
    console.print(f"{checked.name}: {_facts.headline(checked.counts, top_k)}")
    _facts.show(console, checked.found)
    _summary.show(console, checked.summary, edited=False)
    if checked.around is not None:
        console.print(checked.around.line())
    if out is not None:
        console.print(f"Records and summary: {out}/", soft_wrap=True)


def _around(lm: LM, patch: Patch) -> Report:
    """Ask what else moved: neighbours of the patch's own edits, and general sentences."""
    from errata.inspection.look import surroundings

    with _output.status("asking what else moved"):
        return replace(patch, results=(), aftermath=surroundings(lm, patch)).report


def _own(edits: Sequence[Edit], folder: Path) -> LoadedData:
    """Return the edits of a patch as cases; of one prompt only what it was last given.

    Raises:
        PatchError: If it names no edits.
    """
    from errata.case import Case
    from errata.data import LoadedData

    if not edits:
        raise PatchError(f"{folder} names no edits to check", "Give questions: --cases FILE")
    last = {edit.question: edit for edit in edits}
    earlier = len(edits) - len(last)
    if earlier:
        _output.note(
            f"{_output.counted(earlier, 'edit')} left out: a later edit of the patch answers the "
            "same prompt"
        )
    cases: list[Case] = []
    for number, edit in enumerate(last.values(), start=1):
        cases.append(Case(f"edit {number}", (replace(edit, id=None),)))
    return LoadedData(OWN, tuple(cases), "", str(folder))


def _record(checked: _Checked) -> None:
    """Leave the result in the patch folder; one that cannot be written is no failure."""
    folder, summary = checked.folder, checked.summary
    if _targets.kind_of(folder) != _targets.PATCH:
        return
    from errata import __version__
    from errata.store.provenance import now

    document = {
        "patch_sha256": _targets.patch_document(folder).get("sha256"),
        "when": now(),
        "errata": __version__,
        "data": summary["data"],
        "data_version": summary["data_version"],
        "model": summary["model"],
        "top_k": summary["top_k"],
        "cases": summary["cases"],
        "could_not_be_asked": summary["failed"],
        **checked.counts,
        **({} if checked.moved is None else {"moved": checked.moved}),
        "rates": {name: value for name, value in metrics_of(summary).items() if value is not None},
    }
    try:
        _output.write_json(folder / VERIFIED, document)
    except ErrataError as error:
        _output.note(f"the result is not kept: {error.message}")
