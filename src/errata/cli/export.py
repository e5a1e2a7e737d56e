"""`errata export` and `errata import`: patches to LoRA adapters or plain checkpoints, and back."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _targets, _views
from errata.cli._options import DryRunFlag, ForceFlag, JsonFlag, ModelOptions, expand
from errata.errors import ConfigError, PatchError

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch

EXAMPLES = (
    "errata export rome-france --to lora --out adapter",
    "errata export rome-france --to lora --max-rank 8 --out adapter --force",
    "errata export rome-france --to merged --out merged-model",
)
IMPORT_EXAMPLES = ("errata import adapter --out patch --model ./my-model",)


class Form(StrEnum):
    """What a patch becomes."""

    lora = "lora"
    merged = "merged"


@expand
def export(
    patch: Annotated[Path, typer.Argument(help="A patch folder.", show_default=False)],
    model: ModelOptions,
    to: Annotated[
        Form, typer.Option("--to", help="lora: a PEFT adapter; merged: a plain checkpoint.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to write it.")],
    max_rank: Annotated[
        int | None,
        typer.Option(min=1, help="lora: truncate to this rank and say what is lost."),
    ] = None,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Turn a patch into a LoRA adapter for PEFT and vLLM, or into a plain transformers checkpoint.

    The base model is the one named by --model; by default the one that the patch names.
    """
    if max_rank is not None and to is not Form.lora:
        raise ConfigError("--max-rank is for --to lora", "Leave it out, or export --to lora.")
    _check_target(out, to, force)
    loaded, lm = _targets.patch_and_model(patch, model)
    if loaded.is_empty:
        raise PatchError(f"{patch} changes nothing; there is nothing to export")
    _targets.check_answers(loaded, lm)
    if dry_run:
        document = {"dry_run": True, "to": to.value, "out": str(out), **_views.facts(loaded)}
        if json:
            _output.print_json(document)
        else:
            _output.out().print(f"{patch} · {_views.what_changed(loaded)}")
            _output.out().print(f"Dry run: {to.value} would be written to {out}/")
        return
    document = _to_lora(lm, loaded, out, max_rank, force) if to is Form.lora else {}
    if to is Form.merged:
        from errata.patch.export import to_merged

        with _output.status("writing the merged checkpoint"):
            to_merged(lm, loaded, out, force=force)
        document = {
            "to": "merged",
            "folder": str(out),
            "base": lm.name,
            "serve": f"vllm serve {out}",
        }
    files, count = _output.folder_size(out)
    if json:
        _output.print_json({**document, "files": files, "bytes": count})
        return
    console = _output.out()
    console.print(f"Saved {out}/ ({', '.join(files)}; {_output.size(count)}).", soft_wrap=True)
    if to is Form.lora:
        _say_losses(document, max_rank)
    if document["serve"] is None:
        console.print(
            f"vLLM takes adapters up to rank {document['most']}: to serve this one, export again "
            f"with --max-rank {document['most']}."
        )
        return
    console.print("Serve it:")
    console.print(f"  {document['serve']}", soft_wrap=True)


def _check_target(out: Path, to: Form, force: bool) -> None:
    marker = "adapter_config.json" if to is Form.lora else "config.json"
    _output.check_free(out, marker, force)
    if to is Form.merged and out.is_dir() and any(out.iterdir()) and not (out / marker).exists():
        raise PatchError(
            f"{out} holds files that are no model checkpoint; they would be lost",
            "Choose a new or empty folder.",
        )


def _to_lora(lm: LM, patch: Patch, out: Path, max_rank: int | None, force: bool) -> dict[str, Any]:
    from errata.patch.export import RANKS, to_lora

    report = to_lora(lm, patch, out, max_rank=max_rank, force=force)
    return {
        "to": "lora",
        "folder": str(report.folder),
        "base": report.base,
        "rank": report.rank,
        "modules": list(report.modules),
        "lost_energy": dict(report.lost_energy),
        "serve": report.serve,
        "most": RANKS[-1],
    }


def _say_losses(document: dict[str, Any], max_rank: int | None) -> None:
    console = _output.out()
    modules = document["modules"]
    console.print(
        f"LoRA of rank {document['rank']} on {len(modules)} module{'s'[: len(modules) > 1]}."
    )
    worst = max(document["lost_energy"].values(), default=0.0)
    if max_rank is not None:
        console.print(
            f"Cut to rank {max_rank}: at most {worst:.2%} of the change's energy is lost."
        )


@expand
def import_adapter(
    adapter: Annotated[Path, typer.Argument(help="A PEFT LoRA folder.", show_default=False)],
    model: ModelOptions,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATCH", help="Where to write it.")],
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Turn a PEFT LoRA adapter into a patch, to verify it or to edit on top of it."""
    _output.check_free(out, "patch.json", force)
    patch, lm = _targets.adapter_and_model(adapter, model)
    patch.save(out, force=force)
    files, count = _output.folder_size(out)
    if json:
        document = {"folder": str(out), "files": files, "bytes": count, **_views.facts(patch)}
        _output.print_json(document)
        return
    console = _output.out()
    console.print(f"{lm.name} · {_views.what_changed(patch)}")
    console.print(f"Saved {out}/ ({', '.join(files)}; {_output.size(count)}).", soft_wrap=True)
