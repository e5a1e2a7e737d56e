"""The comparison with EasyEdit, on a stand-in package of the same functions and caches.

The stand-in is the published recipe in plain transformers calls (the benchmarks' own baseline), so
that what stands between the two (imports, devices, blocks that return tuples, caches, settings) is
shown to hand over the same problem: the changes of weights are equal.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from benchmarks import against_easyedit

from errata.case import Case
from tests.locate.samples import EDITS, build

NEAR = 1e-3  # float32, after four steps of Adam

PLAIN = """
from types import SimpleNamespace
import torch
from benchmarks.memit_edit import PlainMemit
from benchmarks.rome_edit import PlainRome


def plain(kind, model, tok, hparams, contexts):
    assert torch.zeros(1, device=f"cuda:{hparams.device}").device.type == "cpu"
    def site(layer):
        path = hparams.rewrite_module_tmp.format(layer)
        module = model.get_submodule(path)
        return SimpleNamespace(path=path, d_out=module.out_features, weight=path + ".weight",
                               transposed=False)
    lm = SimpleNamespace(model=model, tokenizer=tok, pad_id=tok.pad_token_id, site=site,
                         device=torch.device("cpu"), module=model.get_submodule)
    made = kind.__new__(kind)
    made.lm, made.prefixes = lm, [c.removesuffix("{}") for c in contexts]
    made.given = {"layer": hparams.layers[-1], "layers": hparams.layers, "lr": hparams.v_lr,
                  "steps": hparams.v_num_grad_steps, "kl_factor": hparams.kl_factor,
                  "clamp": hparams.clamp_norm_factor, "weight_decay": hparams.v_weight_decay,
                  "mom2_weight": hparams.mom2_update_weight}
    return made


def as_edit(request):
    return SimpleNamespace(prompt=request["prompt"], subject=request["subject"],
                           target=request["target_new"])


def key(model, hparams, layer):
    name = str(getattr(model.config, "_name_or_path", "")).replace("/", "_")
    return name, hparams.rewrite_module_tmp.format(layer)


def add(model, found):
    with torch.no_grad():
        for name, delta in found.items():
            model.get_parameter(name).add_(delta)
"""

ROME = """
from ...util.plain import PlainRome, add, as_edit, key, plain
from . import compute_u
CONTEXT_TEMPLATES_CACHE = None

def apply_rome_to_model(model, tok, request, hparams, **kwargs):
    print("Executing ROME")
    layer, = hparams.layers
    made = plain(PlainRome, model, tok, hparams, CONTEXT_TEMPLATES_CACHE)
    made.inverse = compute_u.inv_mom2_cache[key(model, hparams, layer)].double()
    made.module = made.place = model.get_submodule(hparams.rewrite_module_tmp.format(layer))
    seen = []
    block = model.get_submodule(hparams.layer_module_tmp.format(layer))
    handle = block.register_forward_hook(lambda m, a, out: seen.append(type(out)))
    delta = made.edit(as_edit(request[0])).float()
    handle.remove()
    assert set(seen) == {tuple}
    add(model, {made.lm.site(layer).weight: delta})
    return model, {}
"""

JOINT = """
import torch
from ...util.plain import PlainMemit, add, as_edit, key, plain
CONTEXT_TEMPLATES_CACHE, COV_CACHE = None, {}
P, P_loaded = None, False

def made_for(model, tok, hparams):
    bare, more = CONTEXT_TEMPLATES_CACHE
    made = plain(PlainMemit, model, tok, hparams, [*bare, *more])
    made.place = model.get_submodule(hparams.layer_module_tmp.format(hparams.layers[-1]))
    made.moments = {f"mom2.{n}": COV_CACHE[key(model, hparams, n)] for n in hparams.layers}
    return made

def apply_memit_to_model(model, tok, requests, hparams, **kwargs):
    add(model, made_for(model, tok, hparams).batch([as_edit(r) for r in requests]))
    return model, {}

def apply_AlphaEdit_to_model(model, tok, requests, hparams, reset_cache=False, **kwargs):
    assert P_loaded and reset_cache
    made, edits = made_for(model, tok, hparams), [as_edit(r) for r in requests]
    targets = torch.stack([made._value(edit)[0] for edit in edits])
    for i, layer in enumerate(hparams.layers):
        made.module = model.get_submodule(hparams.rewrite_module_tmp.format(layer))
        keys = made._keys(edits).double()
        missing = (targets - made._hidden(edits)).double() / (len(hparams.layers) - i)
        system = P[i].double() @ keys.T @ keys
        system.diagonal().add_(hparams.L2)
        found = torch.linalg.solve(system, P[i].double() @ keys.T @ missing)
        add(model, {made.lm.site(layer).weight: found.T.float()})
    return model, {}
"""

FT = """
import torch

def apply_ft_to_model(model, tok, requests, hparams, **kwargs):
    device = torch.device(f"cuda:{hparams.device}")
    weights = {n: p for n, p in model.named_parameters() for layer in hparams.layers
               if hparams.rewrite_module_tmp.format(layer) in n}
    own = {n: p.detach().clone() for n, p in weights.items()}
    for name, weight in model.named_parameters():
        weight.requires_grad = name in weights
    opt = torch.optim.Adam(list(weights.values()), lr=hparams.lr,
                           weight_decay=hparams.weight_decay)
    for _ in range(hparams.num_steps):
        request, = requests
        ids = tok(request["prompt"], return_tensors="pt").to(device)
        target = tok(" " + request["target_new"], return_tensors="pt")["input_ids"].to(device)
        opt.zero_grad()
        said = model(**ids).logits[:, -1].log_softmax(-1)
        loss = -said.gather(1, target).mean()
        if loss.item() >= 1e-2:
            loss.backward()
            opt.step()
    return model, {}
"""

GRACE = """
import torch

class Adapter(torch.nn.Module):
    def __init__(self, layer, at):
        super().__init__()
        self.layer, self.at, self.values = layer, at, None
        self.weight = layer.weight

    def forward(self, x):
        found = self.layer(x)
        if self.values is None:
            self.keys = x[:, self.at].detach()
            self.values = torch.nn.Parameter(found[:, self.at].detach().clone())
        found[:, self.at] = self.values[0]
        return found

def apply_grace_to_model(model, tok, requests, hparams, **kwargs):
    device = torch.device(f"cuda:{hparams.device}")
    request, = requests
    path = hparams.inner_params[0].removesuffix(".weight").replace("[", ".").replace("]", "")
    parent, _, leaf = path.rpartition(".")
    for weight in model.parameters():
        weight.requires_grad = False
    before = len(tok(request["prompt"])["input_ids"])
    ids = tok(f"{request['prompt']} {request['target_new']}", return_tensors="pt").to(device)
    labels = ids["input_ids"].clone()
    labels[:, :before] = -100
    made = Adapter(model.get_submodule(path), before - 1)
    setattr(model.get_submodule(parent), leaf, made)
    for step in range(hparams.n_iter):
        loss = model(**ids, labels=labels).loss
        opt = opt if step else torch.optim.Adam(model.parameters(), hparams.edit_lr)
        loss.backward()
        opt.step()
        opt.zero_grad()
    return model, {}
"""

ANSWERS = """
import torch

def test_prediction_acc(model, tok, hparams, prompt, target, device, **kwargs):
    start = len(tok(prompt)["input_ids"])
    ids = torch.tensor([tok(prompt + " " + target)["input_ids"]])
    with torch.no_grad():
        said = model(input_ids=ids).logits[0].argmax(-1)
    return [float((said[start - 1 : -1] == ids[0, start:]).float().mean())]
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A checkout: packages whose `__init__` must not be imported, and what is called of them."""
    files = {
        "util/plain.py": PLAIN,
        "models/rome/rome_main.py": ROME,
        "models/rome/compute_u.py": "inv_mom2_cache = {}",
        "models/ft/ft_main.py": FT,
        "models/grace/grace_main.py": GRACE,
        "models/memit/memit_main.py": JOINT,
        "models/alphaedit/AlphaEdit_main.py": JOINT,
        "evaluate/evaluate_utils.py": ANSWERS,
    }
    for name in ("", "util/", "models/", "evaluate/"):
        files[f"{name}__init__.py"] = "raise ImportError('everything is imported at once')"
    for name in ("rome", "memit", "alphaedit", "ft", "grace"):
        files[f"models/{name}/__init__.py"] = ""
    for name, text in files.items():
        path = tmp_path / "checkout" / "easyeditor" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "checkout"


def test_the_same_problem_is_handed_to_both(
    stand_in: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = build("llama", "float32")
    monkeypatch.setattr(
        against_easyedit, "context_templates", lambda lm: ("I think so. {}", "It is late. {}")
    )
    cases = [Case(str(n), (edit,), ()) for n, edit in enumerate(EDITS)]
    args = Namespace(layer=1, blocks=2, steps=4, edits=2, repeats=1, device="cpu",
                     compute="float32", only="")  # fmt: skip
    to, zeros, before = torch.Tensor.to, torch.zeros, lm.fingerprint
    lines = against_easyedit.compare(lm, cases, stand_in, args)
    assert (torch.Tensor.to, torch.zeros) == (to, zeros)
    assert not [name for name in sys.modules if name.startswith("easyeditor")]
    assert build("llama", "float32").fingerprint == before
    *changes, asked, again = [line for line in lines if line.unit != "MiB"]
    peaks = [line for line in lines if line.unit == "MiB"]
    names = ["ROME", "ROME", "MEMIT", "AlphaEdit", "FT", "FT", "GRACE", "GRACE"]
    assert [line.what.partition(",")[0] for line in changes] == names
    for line in changes:
        assert float(line.equal.split()[-2]) < NEAR, line
    assert [line.what.partition(",")[0] for line in peaks] == names
    assert asked.equal == again.equal == f"0 of {len(EDITS)} answers differ"
    assert again.what == "questions before and after, unedited answers kept"
    args.only = "questions"
    only = against_easyedit.compare(lm, cases, stand_in, args)
    assert [line.what for line in only] == [asked.what, again.what]
    assert "Executing" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_head_is_named_where_its_weight_is_listed(kind: str, tmp_path: Path) -> None:
    """A tied head has no parameter of its own name, and MEMIT looks it up by name."""
    lm = build(kind, "float32")
    theirs = against_easyedit.EasyEdit(lm, lambda name: None, {}, tmp_path)
    listed = dict(theirs.model.named_parameters())
    weight = listed[f"{theirs.templates['lm_head_module']}.weight"]
    assert torch.equal(weight, lm.module(lm.spec.head).get_parameter("weight"))


def test_methods_that_a_release_does_not_have_are_left_out_and_named(
    stand_in: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the package of the package index, of 2023, which has no AlphaEdit."""
    for name in ("alphaedit/AlphaEdit_main", "memit/memit_main", "ft/ft_main", "grace/grace_main"):
        (stand_in / "easyeditor" / "models" / f"{name}.py").unlink()
    monkeypatch.setattr(against_easyedit, "context_templates", lambda lm: ("It is late. {}",))
    cases = [Case("0", (EDITS[0],), ())]
    args = Namespace(layer=1, blocks=2, steps=2, edits=1, repeats=1, device="cpu",
                     compute="float32", only="")  # fmt: skip
    lines = against_easyedit.compare(build("llama", "float32"), cases, stand_in, args)
    assert {line.what.partition(",")[0] for line in lines} == {
        "ROME", "questions of a record", "questions before and after",
    }  # fmt: skip
    told = capsys.readouterr().out
    assert all(f"{name} is left out" in told for name in ("MEMIT", "AlphaEdit", "FT", "GRACE"))


def test_without_a_checkout_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in ([], ["--easyedit", str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["against_easyedit", *given])
        against_easyedit.main()
        assert "nothing is compared" in capsys.readouterr().out
