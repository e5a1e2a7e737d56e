"""`errata export` and `errata import`: patches to adapters or plain checkpoints, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _signing, _targets, _views
from errata.cli._options import DryRunFlag, ForceFlag, JsonFlag, ModelOptions, expand
from errata.errors import ConfigError, PatchError
from errata.inspection.soundness import check_answers

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch

EXAMPLES = (
    "errata export rome-france --to lora --out adapter",
    "errata export rome-france --to lora --max-rank 8 --out adapter --force",
    "errata export rome-france --to gguf --out adapter-gguf",
    "errata export rome-france --to merged --out merged-model --max-shard-size 2GB",
)
IMPORT_EXAMPLES = ("errata import adapter --out patch --model ./my-model",)


class Form(StrEnum):
    """What a patch becomes."""

    lora = "lora"
    gguf = "gguf"
    merged = "merged"
    hub = "hub"


MARKERS = {
    Form.lora: "adapter_config.json",
    Form.hub: "adapter_config.json",
    Form.gguf: "adapter.gguf",
    Form.merged: "config.json",
}
"""By what a folder shows that something is there already."""

ADAPTERS = (Form.lora, Form.gguf, Form.hub)


@dataclass(frozen=True)
class ExportOptions:
    """Details of the forms."""

    max_rank: Annotated[
        int | None,
        typer.Option(min=1, help="Adapters: truncate to this rank and say what is lost."),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="gguf: what is served: a GGUF file, whose tensors are compared, or a name that "
            "Ollama knows. Default: what the patch was made for.",
        ),
    ] = None
    max_shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="merged: largest weight file, e.g. 2GB (default: 50GB)."),
    ] = None
    as_stored: Annotated[
        bool,
        typer.Option(
            "--as-stored",
            help="merged: weights in the type that the base model's own files have, not in the one "
            "it was loaded in.",
        ),
    ] = False
    repo: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="hub: repository to push to.")
    ] = None
    private: Annotated[
        bool, typer.Option("--private", help="hub: create the repository as a private one.")
    ] = False

    def check(self, to: Form) -> None:
        """Refuse what another form takes.

        Raises:
            ConfigError: Names the flag.
        """
        for flag, value, forms in (
            ("--max-rank", self.max_rank, ADAPTERS),
            ("--base", self.base, (Form.gguf,)),
            ("--max-shard-size", self.max_shard_size, (Form.merged,)),
            ("--as-stored", self.as_stored or None, (Form.merged,)),
            ("--repo", self.repo, (Form.hub,)),
            ("--private", self.private or None, (Form.hub,)),
        ):
            if value is not None and to not in forms:
                names = " or ".join(f"--to {form.value}" for form in forms)
                raise ConfigError(f"{flag} is for {names}", "Leave it out.")
        if to is Form.hub and self.repo is None:
            raise ConfigError("--to hub needs a repository", "Add --repo OWNER/NAME.")
        if self.repo is not None:
            from errata.patch.hub import check_name

            check_name(self.repo)


@expand
def export(
    patch: Annotated[Path, typer.Argument(help="A patch folder.", show_default=False)],
    model: ModelOptions,
    how: ExportOptions,
    to: Annotated[
        Form,
        typer.Option(
            "--to",
            help="lora: a PEFT adapter; gguf: an adapter for llama.cpp and Ollama; merged: a plain "
            "checkpoint; hub: a PEFT adapter, pushed to the Hub.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to write it.")],
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Turn a patch into an adapter for PEFT and vLLM or llama.cpp, or into a plain checkpoint.

    The base model is the one named by --model; by default the one that the patch names.
    """
    how.check(to)
    _check_target(out, to, force)
    loaded, lm = _targets.patch_and_model(patch, model)
    if loaded.is_empty:
        raise PatchError(f"{patch} changes nothing; there is nothing to export")
    check_answers(loaded, lm)
    if dry_run:
        document = {"dry_run": True, "to": to.value, "out": str(out), **_views.facts(loaded)}
        if json:
            _output.print_json(document)
        else:
            _output.out().print(f"{patch} · {_views.what_changed(loaded)}")
            _output.out().print(f"Dry run: {to.value} would be written to {out}/")
        return
    _signing.say_dropped([patch], out)
    document = _written(lm, loaded, to, out, how, force)
    files, count = _output.folder_size(out)
    if json:
        _output.print_json({**document, "files": files, "bytes": count})
        return
    _output.saved(out, files, count)
    _say(document, how.max_rank)


def _check_target(out: Path, to: Form, force: bool) -> None:
    marker = MARKERS[to]
    _output.check_free(out, marker, force)
    if to is Form.merged and out.is_dir() and any(out.iterdir()) and not (out / marker).exists():
        raise PatchError(
            f"{out} holds files that are no model checkpoint; they would be lost",
            "Choose a new or empty folder.",
        )


def _written(
    lm: LM, patch: Patch, to: Form, out: Path, how: ExportOptions, force: bool
) -> dict[str, Any]:
    """Write a form, and return what is said of it as JSON values."""
    if to is Form.merged:
        from errata.patch.export import to_merged

        with _output.status("writing the merged checkpoint"):
            to_merged(
                lm, patch, out, max_shard_size=how.max_shard_size, as_stored=how.as_stored,
                force=force,
            )  # fmt: skip
        serve = f"vllm serve {out}"
        return {"to": "merged", "folder": str(out), "base": lm.name, "serve": serve}
    if to is Form.gguf:
        from errata.patch.gguf_adapter import to_gguf

        made = to_gguf(lm, patch, out, base=how.base, max_rank=how.max_rank, force=force)
        return {
            "to": "gguf",
            "folder": str(made.folder),
            "file": str(made.file),
            "base": made.base,
            "architecture": made.architecture,
            "rank": made.rank,
            "modules": list(made.modules),
            "lost_energy": dict(made.lost_energy),
            "serve": list(made.serve),
        }
    from errata.patch.export import RANKS, to_lora

    report = to_lora(lm, patch, out, max_rank=how.max_rank, force=force)
    document = {
        "to": to.value,
        "folder": str(report.folder),
        "base": report.base,
        "rank": report.rank,
        "modules": list(report.modules),
        "lost_energy": dict(report.lost_energy),
        "lost_when_served": dict(report.lost_when_served),
        "serve": report.serve,
        "most": RANKS[-1],
    }
    if to is Form.hub:
        from errata.patch.hub import push

        assert how.repo is not None
        with _output.status(f"pushing to {how.repo}"):
            document["url"] = push(out, how.repo, private=how.private)
        document["repo"] = how.repo
    return document


def _say(document: Mapping[str, Any], max_rank: int | None) -> None:
    """Print what was lost, and how the export is served."""
    console = _output.out()
    if "rank" in document:
        _say_losses(document, max_rank)
    if "url" in document:
        console.print(f"Pushed to {document['url']}", soft_wrap=True)
    serve = document["serve"]
    if serve is None:
        most = document["most"]
        worst = max(document["lost_when_served"].values(), default=0.0)
        console.print(
            f"vLLM takes adapters up to rank {most}: to serve this one, export again with "
            f"--max-rank {most}; at most {worst:.2%} of the change's energy would be lost."
        )
        return
    console.print("Serve it:")
    for line in [serve] if isinstance(serve, str) else serve:
        console.print(f"  {line}", soft_wrap=True)


def _say_losses(document: Mapping[str, Any], max_rank: int | None) -> None:
    console = _output.out()
    modules = document["modules"]
    console.print(
        f"LoRA of rank {document['rank']} on {len(modules)} module{'s'[: len(modules) > 1]}."
    )
    worst = max(document["lost_energy"].values(), default=0.0)
    if max_rank is not None and (worst or document["rank"] == max_rank):
        console.print(
            f"Cut to rank {max_rank}: at most {worst:.2%} of the change's energy is lost."
        )


@expand
def import_adapter(
    adapter: Annotated[
        Path,
        typer.Argument(
            help="A PEFT LoRA folder, or an adapter of llama.cpp (GGUF).", show_default=False
        ),
    ],
    model: ModelOptions,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATCH", help="Where to write it.")],
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Turn an adapter of PEFT or llama.cpp into a patch, to verify it or to edit on top of it."""
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
    _output.saved(out, files, count)
