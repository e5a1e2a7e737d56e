"""EasyEdit as it is, called from here: imports, devices, hooks, settings, and what it changed.

EasyEdit's code is imported as it is, from the checkout, and only the modules that are called: its
package imports all its methods at once, with what all of them need. What stands between:

* strings and devices like `cuda:0` in its code mean the device of the model;
* MEMIT looks up the head's weight by name: of a tied model it is given the embedding's;
* its hooks expect blocks that return tuples, as they did before transformers 4.54: on its copy of
  the model every block stands inside two modules, `block` → tuple (hooked) → tensor;
* moments and contexts are put into its caches, so that both use the same and none is counted.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PACKAGES = ("easyeditor", "easyeditor.models", "easyeditor.util", "easyeditor.evaluate")
"""Packages whose own `__init__` is left out: it imports everything."""


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


def _bracketed(path: str) -> str:
    """Return the path of a module as Python writes it: `layers[3].mlp` for `layers.3.mlp`."""
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path.split("."))[1:]


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
        self.made: dict[tuple[Any, ...], Any] = {}
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
        keys.inv_mom2_cache[self._key(settings, layer)] = self._once(
            ("inverse", layer),
            lambda: torch.inverse(self.moments[layer].double()).float().to(self.lm.device),
        )
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
                self.projectors(layers, given["nullspace_threshold"]),
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

    def grace(self, edits: Sequence[Any], layer: int, given: dict[str, Any]) -> list[Any]:
        """Return the key and the value of each edit by itself, in a codebook of its own."""
        path = self.templates["rewrite_module_tmp"].format(layer)
        settings = SimpleNamespace(
            device=0, inner_params=[f"{_bracketed(path)}.weight"], edit_lr=given["lr"],
            n_iter=given["steps"], eps=given["radius"], dist_fn="euc", val_init="warm",
            val_train="sgd", val_reg="None", reg="early_stop", replacement="replace_last",
            eps_expand="coverage", num_pert=8, dropout=0.0,
        )  # fmt: skip
        main = self.load("easyeditor.models.grace.grace_main")
        parent, _, leaf = path.rpartition(".")
        own, found = self.model.get_submodule(path), []
        for edit in edits:
            try:
                with contextlib.redirect_stdout(io.StringIO()), meaning(self.lm.device):
                    main.apply_grace_to_model(
                        self.model, self.tokenizer, [self._request(edit)], settings
                    )
                book = self.model.get_submodule(path)
                found.append((book.keys[0].detach(), book.values[0].detach()))
            finally:
                setattr(self.model.get_submodule(parent), leaf, own)
        return found

    def projectors(self, layers: Sequence[int], threshold: float) -> Any:
        """Return what its users download or compute once."""
        import torch

        def made() -> Any:
            found = []
            for layer in layers:
                U, S, _ = torch.linalg.svd(self.moments[layer].float(), full_matrices=False)
                U = U[:, threshold > S]
                found.append(U @ U.T)
            return torch.stack(found)

        return self._once(("projectors", *layers, threshold), made)

    def _once(self, name: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return what is made once per model, at the first call."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

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
        self.model.zero_grad()  # a later optimiser of all weights would follow what FT has left
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
