"""errata and EasyEdit in turn: the same model, records, contexts, second moments and settings.

`python -m benchmarks.against_easyedit --easyedit CHECKOUT` times ROME (one edit at a time, and side
by side in errata), MEMIT and AlphaEdit (a batch), FT and the questions of records, in CPU seconds,
compares the changes of weights and the answers, and measures what each holds at its peak above what
the process held before. Without a checkout it says so and measures nothing. A method that a release
of EasyEdit does not have is left out and named: the package `easyeditor` of the package index is of
October 2023 and has ROME, MEMIT, FT and the questions; unpacked, it serves as a checkout.

EasyEdit's code is imported as it is, from the checkout, and only the modules that are called: its
package imports all its methods at once, with what all of them need. What stands between:

* strings and devices like `cuda:0` in its code mean the device of the model;
* MEMIT looks up the head's weight by name: of a tied model it is given the embedding's;
* its hooks expect blocks that return tuples, as they did before transformers 4.54: on its copy of
  the model every block stands inside two modules, `block` → tuple (hooked) → tensor;
* moments and contexts are put into its caches, so that both use the same and none is counted.

An environment of its own, where the packages that its modules import can be had (beside errata's:
datasets, matplotlib, numpy, pyyaml; for its questions also nltk, scikit-learn, openai, rouge and
sentence-transformers, whose absence only leaves that line out):

```console
$ python3 -m venv .venv-easyedit && .venv-easyedit/bin/pip install -e . datasets matplotlib nltk
$ git clone https://github.com/zjunlp/EasyEdit    # or: pip download --no-deps easyeditor, unzip
$ .venv-easyedit/bin/python -m benchmarks.against_easyedit --easyedit EasyEdit
```
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import importlib
import io
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import _common as common
from benchmarks.memory import _status
from benchmarks.rome_edit import context_templates, random_moment

PACKAGES = ("easyeditor", "easyeditor.models", "easyeditor.util", "easyeditor.evaluate")
"""Packages whose own `__init__` is left out: it imports everything."""

ROME, MEMIT = 20, 5
"""Contexts beside the bare prompt."""

AIMS = {"ROME": 6.0, "MEMIT": 8.0, "AlphaEdit": 8.0, "FT": 4.0, "questions": 4.0, "again": 6.0}
"""Times as fast as EasyEdit, in float32; again: where the unedited answers are known."""

ROUGH = {
    "ROME": 14.0,
    "MEMIT": 18.0,
    "AlphaEdit": 18.0,
    "FT": 4.0,
    "questions": 10.0,
    "again": 14.0,
}
"""The same where optimisations multiply in bfloat16 (`--compute auto`, `bfloat16`), and questions
are asked of a model in bfloat16."""


# ---------------------------------------------------------------------- EasyEdit


def checkout(path: str) -> Path | None:
    """Return the folder of a checkout; None if there is none at this path."""
    folder = Path(path).expanduser()
    found = path and (folder / "easyeditor" / "models" / "rome" / "rome_main.py").is_file()
    return folder.resolve() if found else None


@contextmanager
def importing(folder: Path) -> Iterator[Callable[[str], Any]]:
    """Import single modules of a checkout in a `with` block; all of them are forgotten after."""
    for name in PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    try:
        yield importlib.import_module
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "easyeditor"]:
            del sys.modules[name]


@contextmanager
def meaning(device: Any) -> Iterator[None]:
    """Let `cuda:…` in the calls that EasyEdit makes mean a device."""
    import torch

    def there(value: Any) -> Any:
        named = value.type if isinstance(value, torch.device) else value
        return device if isinstance(named, str) and named.startswith("cuda") else value

    def translated(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            given = {name: there(value) for name, value in kwargs.items()}
            return call(*map(there, args), **given)

        return called

    places = [(torch.Tensor, "to"), *((torch, name) for name in ("zeros", "tensor", "eye"))]
    own = [(place, name, getattr(place, name)) for place, name in places]
    try:
        for place, name, call in own:
            setattr(place, name, translated(call))
        yield
    finally:
        for place, name, call in own:
            setattr(place, name, call)


def in_tuples(model: Any, blocks: Sequence[str]) -> Any:
    """Return a copy of a model in which `BLOCK.inner` returns a tuple and holds the block."""
    from torch import nn

    class Inner(nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.block = block

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = self.block(*args, **kwargs)
            return found if isinstance(found, tuple) else (found,)

    class Outer(nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.inner = Inner(block)

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:  # some models ask their blocks what kind of attention they have
                return getattr(super().__getattr__("inner").block, name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = self.inner(*args, **kwargs)
            return found if len(found) > 1 else found[0]

    made = copy.deepcopy(model)
    for path in blocks:
        parent, _, leaf = path.rpartition(".")
        setattr(made.get_submodule(parent), leaf, Outer(made.get_submodule(path)))
    return made


class EasyEdit:
    """EasyEdit's functions on a copy of a model.

    Args:
        lm: The model.
        load: Imports a module of the checkout.
        moments: By block, the second moment of its keys.
        folder: The checkout.
    """

    def __init__(self, lm: Any, load: Callable[[str], Any], moments: Any, folder: Path) -> None:
        self.lm, self.load, self.moments, self.folder = lm, load, moments, folder
        spec = lm.spec
        self.model = in_tuples(lm.model, spec.blocks)
        self.name = str(getattr(self.model.config, "_name_or_path", "")).replace("/", "_")
        block = self._pattern(spec.blocks[0])
        inside = lm.site(0).path.removeprefix(f"{spec.blocks[0]}.")
        self.templates = {
            "rewrite_module_tmp": f"{block}.inner.block.{inside}",
            "layer_module_tmp": f"{block}.inner",
            "mlp_module_tmp": f"{block}.inner.block.{inside.rpartition('.')[0]}",
            "attn_module_tmp": f"{block}.inner.block",
            "ln_f_module": spec.final_norm, "lm_head_module": self._head(spec),
        }  # fmt: skip
        self.tokenizer = copy.deepcopy(lm.tokenizer)
        self.tokenizer.padding_side = "right"
        self.tokenizer.pad_token_id = lm.pad_id

    def _head(self, spec: Any) -> str:
        """Return where the head's weight is listed: a tied one only as the embedding's."""
        listed = dict(self.model.named_parameters())
        return spec.head if f"{spec.head}.weight" in listed else spec.embedding

    @staticmethod
    def _pattern(path: str) -> str:
        return ".".join("{}" if part == "0" else part for part in path.split("."))

    def settings(self, method: str, layers: Sequence[int], given: dict[str, Any]) -> Any:
        """Return what EasyEdit calls hyperparameters."""
        return SimpleNamespace(
            **self.templates, alg_name=method, model_name="llama", layers=list(layers),
            layer_selection="all", fact_token="subject_last", device=str(self.lm.device),
            v_num_grad_steps=given["steps"], v_lr=given["lr"], v_loss_layer=self.lm.n_layers - 1,
            v_weight_decay=given["weight_decay"], clamp_norm_factor=given["clamp"],
            kl_factor=given["kl_factor"], mom2_adjustment=True, mom2_dataset="", mom2_n_samples=0,
            mom2_update_weight=given.get("mom2_weight"), mom2_dtype="float32", stats_dir="",
            context_template_length_params=[], original_implementation=True, max_length=512,
            enable_prompt_keys=False, enable_random_prefix_keys=False, model_parallel=False,
            fp16=False, batch_size=given.get("batch_size", 1), L2=given.get("l2"),
            P_loc=str(self.folder), nullspace_threshold=given.get("nullspace_threshold"),
            num_steps=given["steps"], lr=given["lr"], norm_constraint=None,
            weight_decay=given["weight_decay"], objective_optimization="prompt_last",
        )  # fmt: skip

    def _key(self, settings: Any, layer: int) -> tuple[str, str]:
        return self.name, settings.rewrite_module_tmp.format(layer)

    def rome(self, edits: Sequence[Any], layer: int, given: dict[str, Any]) -> list[Any]:
        """Return the change of the weight for each edit by itself."""
        import torch

        settings = self.settings("ROME", [layer], given)
        main = self.load("easyeditor.models.rome.rome_main")
        keys = self.load("easyeditor.models.rome.compute_u")
        main.CONTEXT_TEMPLATES_CACHE = ["{}", *given["contexts"]]
        inverse = torch.inverse(self.moments[layer].double()).float().to(self.lm.device)
        keys.inv_mom2_cache[self._key(settings, layer)] = inverse
        return [
            self._changed(lambda e=edit: main.apply_rome_to_model(
                self.model, self.tokenizer, [self._request(e)], settings), [layer], settings)
            for edit in edits
        ]  # fmt: skip

    def batch(
        self, method: str, edits: Sequence[Any], layers: Sequence[int], given: dict[str, Any]
    ) -> Any:
        """Return the changes that MEMIT or AlphaEdit makes of a batch."""
        settings = self.settings(method, layers, given)
        name = {"MEMIT": "memit.memit_main", "AlphaEdit": "alphaedit.AlphaEdit_main"}[method]
        main = self.load(f"easyeditor.models.{name}")
        main.CONTEXT_TEMPLATES_CACHE = [["{}"], list(given["contexts"])]
        for layer in layers:
            main.COV_CACHE[self._key(settings, layer)] = self.moments[layer].float()
        more: dict[str, Any] = {}
        if method == "AlphaEdit":
            main.P, main.P_loaded, more = (
                self._projectors(layers, given),
                True,
                {"reset_cache": True},
            )
        call = getattr(main, f"apply_{method.lower() if method == 'MEMIT' else method}_to_model")
        requests = [self._request(edit) for edit in edits]
        return self._changed(
            lambda: call(self.model, self.tokenizer, requests, settings, **more), layers, settings
        )

    def ft(self, edits: Sequence[Any], layer: int, given: dict[str, Any]) -> list[Any]:
        """Return the change of the weight that fine-tuning on each edit by itself makes."""
        settings = self.settings("FT", [layer], given)
        settings.device = 0  # it makes a device of the number
        main = self.load("easyeditor.models.ft.ft_main")
        return [
            self._changed(lambda e=edit: main.apply_ft_to_model(
                self.model, self.tokenizer, [self._request(e)], settings), [layer], settings)
            for edit in edits
        ]  # fmt: skip

    def _projectors(self, layers: Sequence[int], given: dict[str, Any]) -> Any:
        """Return what its users download or compute once."""
        import torch

        found = []
        for layer in layers:
            U, S, _ = torch.linalg.svd(self.moments[layer].float(), full_matrices=False)
            U = U[:, given["nullspace_threshold"] > S]
            found.append(U @ U.T)
        return torch.stack(found)

    @staticmethod
    def _request(edit: Any) -> dict[str, Any]:
        return {"prompt": edit.prompt, "subject": edit.subject, "target_new": edit.target,
                "case_id": 0}  # fmt: skip

    def _changed(
        self, call: Callable[[], Any], layers: Sequence[int], settings: Any
    ) -> dict[int, Any]:
        """Run a call, return what it added to the weights, and put them back."""
        import torch

        weights = {
            layer: self.model.get_parameter(f"{settings.rewrite_module_tmp.format(layer)}.weight")
            for layer in layers
        }
        own = {layer: weight.detach().clone() for layer, weight in weights.items()}
        with contextlib.redirect_stdout(io.StringIO()), meaning(self.lm.device):
            call()
        self.model.requires_grad_(False)
        with torch.no_grad():
            found = {layer: (weights[layer] - own[layer]).double() for layer in layers}
            for layer, weight in weights.items():
                weight.copy_(own[layer])
        return found

    def answers(self, cases: Sequence[Any], settings: Any) -> list[Any]:
        """Return the share of right tokens of every question, as its evaluation computes it."""
        ask = self.load("easyeditor.evaluate.evaluate_utils").test_prediction_acc
        found = []
        with contextlib.redirect_stdout(io.StringIO()), meaning(self.lm.device):
            for case in cases:
                pairs = [(e.prompt, e.target) for e in case.edits]
                pairs += [(probe.prompt, probe.target) for probe in case.probes]
                found += [
                    ask(self.model, self.tokenizer, settings, prompt, target, self.lm.device)
                    for prompt, target in pairs
                ]
        return found


# ---------------------------------------------------------------------- both


def distance(theirs: Any, mine: dict[str, Any], lm: Any) -> float:
    """Return the largest relative difference of the changes of any weight."""
    gaps = []
    for layer, delta in theirs.items():
        own = mine[lm.site(layer).weight].double()
        gaps.append(float((own - delta).norm() / delta.norm()))
    return max(gaps)


def compare(lm: Any, cases: Sequence[Any], folder: Path, args: Any) -> list[common.Line]:
    """Time both in turn and compare what they make."""
    from safetensors.torch import load_file

    from errata.editors import get_editor
    from errata.patch.deltas import weight_deltas

    layers = tuple(args.layer - n for n in range(args.blocks))[::-1]
    path = random_moment(lm, layers, common.CACHE)
    moments = {layer: load_file(path)[f"mom2.{layer}"] for layer in layers}
    edits = [case.edits[0] for case in cases]
    shared = {"steps": args.steps, "lr": 0.5, "weight_decay": 0.5, "clamp": 4.0,
              "kl_factor": 0.0625, "contexts": context_templates(lm)}  # fmt: skip
    common_settings = {"moments_file": str(path), "sink_prefix": "off"}
    lines = []
    aims = AIMS if args.compute == "float32" else ROUGH
    wanted = set(args.only.split()) or {*aims}

    def timed(
        name: str, what: str, more: dict[str, Any], ways: dict[str, Callable[[], Any]]
    ) -> list[common.Line]:
        if name not in wanted:
            return []
        try:
            timings, peaks, found = watched(ways, args)
        except ImportError as error:
            print(f"{name} is left out, this release of EasyEdit does not have it: {error}")
            return []
        pairs = zip(found["theirs"], found["mine"], strict=True)
        gap = max(distance(a, weight_deltas(lm, b.changes), lm) for a, b in pairs)
        contexts = f", {len(more['contexts']) + 1} contexts" if "contexts" in more else ""
        return [
            common.line(
                f"{name}, {what}", lm.name, "EasyEdit", timings["theirs"], timings["mine"],
                args.device, equal=f"weight changes differ by {gap:.1e} (relative)",
                note=f"{more['steps']} steps{contexts}; moments ready", aim=aims.get(name),
            ),
            common.Line(
                f"{name}, {what}: memory at the peak", lm.name, "EasyEdit",
                peaks["theirs"] / max(peaks["mine"], 1e-9), peaks["theirs"], peaks["mine"],
                unit="MiB", note="above what the process held before",
            ),
        ]  # fmt: skip

    with importing(folder) as load:
        theirs = EasyEdit(lm, load, moments, folder)
        some, own = edits[: args.edits], {**shared, "contexts": shared["contexts"][:ROME]}
        rome = get_editor("rome", {**own, **common_settings, "layer": args.layer})
        rome.prepare(lm)
        plain = lambda: theirs.rome(some, args.layer, own)  # noqa: E731
        for what, mine in (
            ("one by one", lambda: [rome.edit_one(lm, [edit]) for edit in some]),
            (f"{len(some)} side by side", lambda: rome.edit(lm, [[edit] for edit in some])),
        ):
            lines += timed("ROME", what, own, {"theirs": plain, "mine": mine})
        batch = {**shared, "contexts": shared["contexts"][-MEMIT:]}
        for method, name, extra in (
            ("MEMIT", "memit", {"mom2_weight": 100.0}),
            ("AlphaEdit", "alphaedit", {"l2": 10.0, "nullspace_threshold": 1.0}),
        ):
            editor = get_editor(name, {**batch, **extra, **common_settings, "layers": layers})
            editor.prepare(lm)
            ways = {
                "theirs": lambda m=method, e=extra: [
                    theirs.batch(m, edits, layers, {**batch, **e})
                ],
                "mine": lambda e=editor: [e.edit_one(lm, edits)],
            }
            lines += timed(method, f"a batch of {len(edits)}", batch, ways)
        for what, ways in _ft(lm, theirs, some, args.layer).items():
            lines += timed("FT", what, FT, ways)
        if "questions" in wanted:
            settings = theirs.settings("ROME", layers, shared)
            lines += questions(lm, cases, theirs, settings, args, aims)
    return lines


FT: dict[str, Any] = {"steps": 5, "lr": 1e-4, "weight_decay": 0.0}
"""Few steps: Adam's first ones divide by the root of nearly nothing and carry rounding on."""

FT_OURS = {"objective": "prompt_last", "stop_loss": 1e-2, "norm_constraint": None}


def _ft(
    lm: Any, theirs: EasyEdit, edits: Sequence[Any], layer: int
) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return fine-tuning by both, with the loss of the first publications."""
    from errata.editors import get_editor

    editor = get_editor("ft", {**FT, **FT_OURS, "layers": [layer]})
    given = {**FT, "clamp": None, "kl_factor": None}
    plain = lambda: theirs.ft(edits, layer, given)  # noqa: E731
    return {
        "one by one": {
            "theirs": plain, "mine": lambda: [editor.edit_one(lm, [edit]) for edit in edits],
        },
        f"{len(edits)} side by side": {
            "theirs": plain, "mine": lambda: editor.edit(lm, [[edit] for edit in edits]),
        },
    }  # fmt: skip


def watched(
    ways: dict[str, Callable[[], Any]], args: Any
) -> tuple[dict[str, common.Timing], dict[str, float], dict[str, Any]]:
    """Run all ways in turn.

    Returns:
        Timings; the MiB that each holds at its peak above what the process held before it; and what
        each returned last.
    """
    timings, peaks, found = {name: common.Timing() for name in ways}, {}, {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            before = _status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak counts from here
            spent, last = common.interleaved({name: way}, 1, args.device)
            peaks[name] = _status("VmHWM") - before
            timings[name].cpu += spent[name].cpu
            timings[name].wall += spent[name].wall
            found |= last
    return timings, peaks, found


def questions(
    lm: Any,
    cases: Sequence[Any],
    theirs: EasyEdit,
    settings: Any,
    args: Any,
    aims: dict[str, float],
) -> list[common.Line]:
    """Compare the questions of records; an edit of no strength stands for what is between them.

    EasyEdit asks before and after an edit. errata keeps the unedited answers in its cache, so that
    other editors on the same records ask after it only.
    """
    import errata
    from errata.evaluation.questions import questions_of

    rough = aims is ROUGH
    asking = errata.load(args.model, device=args.device, dtype="bfloat16") if rough else lm

    try:
        theirs.answers(cases[:1], settings)
    except ImportError as error:
        print(f"its questions are left out: {error}")
        return []

    def mine() -> list[float]:
        asked = [q for case in cases for q in questions_of(asking, case, 1, False)]
        scores = asking.score([question.row for question in asked])
        return [sum(r == 0 for r in score.ranks) / len(score.ranks) for score in scores]

    def twice() -> list[Any]:
        theirs.answers(cases, settings)
        return theirs.answers(cases, settings)

    mine()  # what is made once per model
    lines = []
    for what, aim, plain in (
        ("questions of a record", "questions", lambda: theirs.answers(cases, settings)),
        ("questions before and after, unedited answers kept", "again", twice),
    ):
        timings, found = common.interleaved(
            {"theirs": plain, "mine": mine}, args.repeats, args.device
        )
        values = [one[0] if isinstance(one, list) else one for one in found["theirs"]]
        moved = sum(abs(a - b) > 1e-6 for a, b in zip(values, found["mine"], strict=True))
        told = f"{what}, the model in bfloat16" if rough else what
        lines.append(common.line(
            told, lm.name, "EasyEdit", timings["theirs"], timings["mine"],
            args.device, equal=f"{moved} of {len(values)} answers differ",
            note=f"{len(cases)} records; of the unedited model", aim=aims[aim],
        ))  # fmt: skip
    return lines


def main() -> None:
    """Compare on a model, if there is a checkout."""
    args = common.options(
        __doc__, records=20, repeats=1, steps=20, edits=4, layer=7, blocks=5,
        model="smollm2", easyedit="", compute="float32", only="",
    )  # fmt: skip
    folder = checkout(args.easyedit)
    if folder is None:
        there = f"no checkout of EasyEdit at {args.easyedit!r}" if args.easyedit else "no checkout"
        print(f"{there}: nothing is compared. Give one: --easyedit FOLDER (see the docstring)")
        return
    if args.quick:
        args.steps, args.edits = 4, 2
    import errata

    lm = common.prepared(errata.load(args.model, device=args.device, compute=args.compute))
    lines = compare(lm, common.records(common.SMALL, args.records), folder, args)
    rough = "" if args.compute == "float32" else "_rough"
    common.finish(f"against_easyedit{rough}", args, lines)


if __name__ == "__main__":
    main()
