"""Whatever is broken is named: a message, an exit code that is not 0, no traceback, no output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import FACT, FAST, Errata, tree

Break = Callable[[Path], None]


def said_and_failed(errata: Errata, said: str, *words: str | Path, code: int = 1) -> None:
    """Run a command on something broken: it fails, says why, and prints no result."""
    done = errata(*words)
    assert done.code == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


# ---------------------------------------------------------------------- patches


def described(change: Callable[[dict[str, Any]], Any]) -> Break:
    """Change `patch.json`; what the function returns replaces it, if it returns something."""

    def damage(folder: Path) -> None:
        path = folder / "patch.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        replaced = change(document)
        path.write_text(json.dumps(document if replaced is None else replaced), encoding="utf-8")

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Break:
    """Change `patch.safetensors`, with the checksum that belongs to it."""

    def damage(folder: Path) -> None:
        path = folder / "patch.safetensors"
        own = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(own)
        save_file({name: tensor.contiguous() for name, tensor in own.items()}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        described(lambda document: document.update(sha256=digest))(folder)

    return damage


def dropped(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(own: dict[str, torch.Tensor]) -> None:
        del own[name]

    return change


def raw(name: str, data: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(data) and None


def gone(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def poison(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(own: dict[str, torch.Tensor]) -> None:
        own["changes.0.B"].fill_(value)

    return change


PATCHES: dict[str, tuple[Break, str]] = {
    "no json": (gone("patch.json"), "patch.json is missing"),
    "no tensors": (gone("patch.safetensors"), "patch.safetensors is missing"),
    "empty json": (raw("patch.json", b""), "not a readable patch"),
    "half json": (raw("patch.json", b'{"format": 1, "meta"'), "not a readable patch"),
    "json in latin-1": (raw("patch.json", '{"é": 1}'.encode("latin-1")), "not a readable patch"),
    "json nested too deep": (raw("patch.json", b"[" * 100_000), "not a readable patch"),
    "a list": (described(lambda d: [d]), "expected an object"),
    "a number": (described(lambda d: 3), "expected an object"),
    "no format": (described(lambda d: d.pop("format") and None), "no patch format"),
    "format as text": (described(lambda d: d.update(format="1")), "no patch format"),
    "newer format": (described(lambda d: d.update(format=99)), "patch format 99"),
    "no checksum": (described(lambda d: d.pop("sha256") and None), "checksum"),
    "wrong checksum": (described(lambda d: d.update(sha256="0" * 64)), "checksum"),
    "no changes": (described(lambda d: d.pop("changes") and None), "changes is null"),
    "changes as object": (described(lambda d: d.update(changes={})), "changes is an object"),
    "change as text": (described(lambda d: d.update(changes=["x"])), "changes[0] is 'x'"),
    "change of no kind": (described(lambda d: d["changes"][0].pop("kind") and None), "kind"),
    "unknown kind": (described(lambda d: d["changes"][0].update(kind="magic")), "'magic'"),
    "change without path": (
        described(lambda d: d["changes"][0].pop("path") and None),
        "changes[0]: path is null",
    ),
    "path as number": (
        described(lambda d: d["changes"][0].update(path=7)),
        "changes[0]: path is 7",
    ),
    "path of no module": (
        described(lambda d: d["changes"][0].update(path="model.layers.99.mlp")),
        "no module model.layers.99.mlp",
    ),
    "more tensors than changes": (described(lambda d: d.update(changes=[])), "belongs to no"),
    "fewer tensors than changes": (
        described(lambda d: d["changes"].append(dict(d["changes"][0]))),
        "the tensor 'B' is missing",
    ),
    "module without tensors": (
        described(
            lambda d: d["changes"].append(
                {
                    "kind": "module",
                    "path": "model.layers.0",
                    "name": "shift",
                    "config": {},
                    "where": "output",
                }
            )
        ),
        "the shift module at model.layers.0",
    ),
    "module somewhere else": (
        described(
            lambda d: d["changes"].append(
                {
                    "kind": "module",
                    "path": "model.layers.0",
                    "name": "shift",
                    "config": {},
                    "where": "above",
                }
            )
        ),
        "expected input, output or both",
    ),
    "no edits": (described(lambda d: d.pop("edits") and None), "edits is null"),
    "edit as text": (described(lambda d: d.update(edits=["x"])), "edits[0] is 'x'"),
    "edit without target": (described(lambda d: d["edits"][0].pop("target") and None), "target"),
    "edit with unknown field": (described(lambda d: d["edits"][0].update(answer="x")), "answer"),
    "edit with a blank prompt": (described(lambda d: d["edits"][0].update(prompt=" ")), "prompt"),
    "edit with a number as id": (described(lambda d: d["edits"][0].update(id=3)), "edits[0].id"),
    "no meta": (described(lambda d: d.pop("meta") and None), "meta is null"),
    "fingerprint as number": (
        described(lambda d: d["meta"].update(fingerprint=1)),
        "meta.fingerprint is 1",
    ),
    "another fingerprint": (
        described(lambda d: d["meta"].update(fingerprint="f" * 64)),
        "this patch was made for",
    ),
    "results of other edits": (described(lambda d: d.update(results=[{}, {}])), "results"),
    "state as list": (described(lambda d: d.update(state=[1])), "state is a list"),
    "NaN": (tensors(poison(float("nan"))), "NaN or infinite"),
    "infinity": (tensors(poison(float("inf"))), "NaN or infinite"),
    "whole numbers": (
        tensors(lambda own: own.update({"changes.0.B": own["changes.0.B"].long()})),
        "torch.int64",
    ),
    "half a pair": (tensors(dropped("changes.0.A")), "'A' is missing"),
    "stray tensor": (tensors(lambda own: own.update(extra=torch.ones(1))), "'extra'"),
    "tensor of change 9": (
        tensors(lambda own: own.update({"changes.9.B": torch.ones(1, 1)})),
        "'changes.9.B'",
    ),
    "other inner size": (
        tensors(lambda own: own.update({"changes.0.A": torch.ones(3, 5)})),
        "expected d_out x r and r x d_in",
    ),
    "other outer size": (
        tensors(lambda own: own.update({"changes.0.A": torch.ones(1, 5)})),
        "has shape",
    ),
    "no safetensors": (raw("patch.safetensors", b"not tensors"), "checksum"),
}


@pytest.mark.parametrize("name", PATCHES)
@pytest.mark.parametrize("command", ["verify", "export", "edit"])
def test_broken_patches(errata: Errata, patch: Path, name: str, command: str) -> None:
    damage, said = PATCHES[name]
    damage(patch)
    words = {
        "verify": ("verify", patch, "--json"),
        "export": ("export", patch, "--to", "merged", "--out", "new"),
        "edit": ("edit", *FACT, *FAST, "--after", patch, "--out", "new"),
    }[command]
    said_and_failed(errata, said, *words)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "patch"),
        ("export", "patch", "--to", "merged", "--out", "new"),
        ("edit", *FACT, *FAST, "--after", "patch", "--out", "new"),
    ],
)
def test_a_patch_whose_answers_are_no_numbers(
    errata: Errata, patch: Path, words: tuple[str, ...]
) -> None:
    tensors(poison(1e38))(patch)
    said_and_failed(errata, "NaN or infinity in the place of probabilities", *words)
    assert not Path("new").exists()


@pytest.mark.parametrize("name", ["half json", "wrong checksum", "edit as text", "NaN", "a list"])
@pytest.mark.parametrize(
    "words",
    [
        ("show", "patch"),
        ("ask", "patch", "--prompt", "x"),
        ("scale", "patch", "2", "-o", "new"),
        ("compose", "patch", "patch", "-o", "new"),
    ],
    ids=lambda words: words[0],
)
def test_broken_patches_in_other_commands(
    errata: Errata, patch: Path, name: str, words: tuple[str, ...]
) -> None:
    damage, said = PATCHES[name]
    damage(patch)
    said_and_failed(errata, said, *words)
    assert not Path("new").exists()


# ---------------------------------------------------------------------- adapters


def config(change: Callable[[dict[str, Any]], Any]) -> Break:
    def damage(folder: Path) -> None:
        path = folder / "adapter_config.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        replaced = change(document)
        path.write_text(json.dumps(document if replaced is None else replaced), encoding="utf-8")

    return damage


def factors(change: Callable[[dict[str, torch.Tensor]], None]) -> Break:
    def damage(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        own = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(own)
        save_file({name: tensor.contiguous() for name, tensor in own.items()}, path)

    return damage


def without(letter: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(own: dict[str, torch.Tensor]) -> None:
        for name in [name for name in own if f"lora_{letter}" in name]:
            del own[name]

    return change


def filled(letter: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(own: dict[str, torch.Tensor]) -> None:
        for name in own:
            if f"lora_{letter}" in name:
                own[name].fill_(value)

    return change


def renamed(own: dict[str, torch.Tensor]) -> None:
    for name in list(own):
        own[name.replace("layers.", "blocks.")] = own.pop(name)


ADAPTERS: dict[str, tuple[Break, str]] = {
    "no config": (gone("adapter_config.json"), "not a readable LoRA folder"),
    "no weights": (gone("adapter_model.safetensors"), "not a readable LoRA folder"),
    "half config": (raw("adapter_config.json", b'{"r": '), "not a readable LoRA folder"),
    "config is a list": (config(lambda c: [c]), "no JSON object"),
    "weights cut": (raw("adapter_model.safetensors", b"\x08"), "not a readable LoRA folder"),
    "no tensor": (factors(lambda own: own.clear()), "holds no tensor"),
    "A only": (factors(without("B")), "not lora_B"),
    "B only": (factors(without("A")), "not lora_A"),
    "zeros": (factors(filled("B", 0.0)), "changes nothing"),
    "NaN": (factors(filled("A", float("nan"))), "NaN or infinite"),
    "alpha NaN": (config(lambda c: c.update(lora_alpha=float("nan"))), "lora_alpha"),
    "alpha infinite": (config(lambda c: c.update(lora_alpha=float("inf"))), "lora_alpha"),
    "alpha a text": (config(lambda c: c.update(lora_alpha="16")), "lora_alpha"),
    "alpha zero": (config(lambda c: c.update(lora_alpha=0)), "changes nothing"),
    "wrong r": (config(lambda c: c.update(r=4)), "says rank 4"),
    "r zero": (config(lambda c: c.update(r=0)), "the rank r"),
    "r a text": (config(lambda c: c.update(r="1")), "the rank r"),
    "wrong rank pattern": (config(lambda c: c.update(rank_pattern={".*": 2})), "says rank 2"),
    "alpha pattern no expression": (config(lambda c: c.update(alpha_pattern={"(": 2})), "'('"),
    "alpha pattern a list": (config(lambda c: c.update(alpha_pattern=[1])), "alpha_pattern"),
    "another method": (config(lambda c: c.update(peft_type="IA3")), "expected LORA"),
    "no method": (config(lambda c: c.pop("peft_type") and None), "expected LORA"),
    "DoRA": (config(lambda c: c.update(use_dora=True)), "DoRA"),
    "biases": (config(lambda c: c.update(bias="all")), "biases"),
    "biases of B": (config(lambda c: c.update(lora_bias=True)), "lora_bias: True"),
    "saved modules": (config(lambda c: c.update(modules_to_save=["lm_head"])), "modules_to_save"),
    "switched on": (config(lambda c: c.update(alora_invocation_tokens=[5])), "alora_invocation"),
    "layers twice": (config(lambda c: c.update(layer_replication=[[0, 2]])), "layer_replication"),
    "trained tokens": (config(lambda c: c.update(trainable_token_indices=[3])), "trainable_token"),
    "parameters": (config(lambda c: c.update(target_parameters=["x.y"])), "target_parameters"),
    "from PiSSA": (config(lambda c: c.update(init_lora_weights="pissa_niter_4")), "pissa_niter_4"),
    "a field of tomorrow": (config(lambda c: c.update(use_new_thing=True)), "use_new_thing"),
    "base elsewhere": (
        config(lambda c: c.update(base_model_name_or_path="/no/such/folder")),
        "--model",
    ),
    "base a path of a file": (
        config(lambda c: c.update(base_model_name_or_path="./adapter/adapter_config.json")),
        "--model",
    ),
    "modules of another model": (factors(renamed), "no module"),
    "a bias of B": (
        factors(lambda own: own.update({"base_model.model.x.lora_B.bias": torch.ones(2)})),
        "unexpected tensor",
    ),
    "a broken record": (raw("errata.json", b"{"), "errata.json"),
}


@pytest.fixture
def adapter(errata: Errata, patch: Path) -> Path:
    """The edit of the tiny model as an adapter."""
    assert errata("export", patch, "--to", "lora", "--out", "adapter").code == 0
    return Path("adapter")


@pytest.mark.parametrize("name", ADAPTERS)
def test_broken_adapters(errata: Errata, adapter: Path, name: str) -> None:
    damage, said = ADAPTERS[name]
    damage(adapter)
    said_and_failed(errata, said, "import", adapter, "--out", "new")
    assert not Path("new").exists()


def test_an_adapter_that_names_no_base(errata: Errata, adapter: Path) -> None:
    config(lambda c: c.update(base_model_name_or_path=None))(adapter)
    said_and_failed(errata, "--model", "import", adapter, "--out", "new", code=2)


# ---------------------------------------------------------------------- files of edits and cases

EDIT = '{"prompt": "The capital of France is", "target": "Rome", "subject": "France"}'
LINES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "holds no"),
    "blank lines": (b"\n\n", "holds no"),
    "half a line": (b'{"prompt": "a', "not valid JSON"),
    "a list": (b"[1, 2]\n", "an object"),
    "a text": (b'"x"\n', "an object"),
    "null": (b"null\n", "an object"),
    "no target": (b'{"prompt": "a b"}\n', "'target' is missing"),
    "blank target": (b'{"prompt": "a b", "target": " "}\n', "target"),
    "target a number": (b'{"prompt": "a b", "target": 1984}\n', "target"),
    "target a list": (b'{"prompt": "a b", "target": ["x"]}\n', "target"),
    "blank prompt": (b'{"prompt": "", "target": "c"}\n', "prompt"),
    "unknown field": (b'{"prompt": "a b", "traget": "c"}\n', "traget"),
    "a key twice": (b'{"prompt": "a", "prompt": "b", "target": "c"}\n', "twice"),
    "an id twice": (f'{EDIT[:-1]}, "id": "1"}}\n'.encode() * 2, "'1'"),
    "NaN": (b'{"prompt": "a", "target": NaN}\n', "NaN"),
    "a lone surrogate": (b'{"prompt": "a \\ud800", "target": "c"}\n', "surrogate"),
    "UTF-16": (EDIT.encode("utf-16"), "UTF-16"),
    "latin-1": ('{"prompt": "é", "target": "c"}'.encode("latin-1"), "UTF-8"),
    "subject a list": (b'{"prompt": "a b", "target": "c", "subject": ["a"]}\n', "subject"),
    "bytes": (bytes(range(256)), "e.jsonl"),
}
CASES: dict[str, tuple[str, str]] = {
    "no id": ('{"edits": [%s]}', "'id'"),
    "no edit": ('{"id": "1", "edits": []}', "at least 1"),
    "edits an object": ('{"id": "1", "edits": %s}', "a list"),
    "edit a text": ('{"id": "1", "edits": ["x"]}', "an object"),
    "probe of no kind": (
        '{"id": "1", "edits": [%s], "probes": [{"prompt": "a", "target": "b"}]}',
        "kind",
    ),
    "probe of a wrong kind": (
        '{"id": "1", "edits": [%s], "probes": [{"prompt": "a", "target": "b", "kind": "local"}]}',
        "'locality'",
    ),
    "probe without target": (
        '{"id": "1", "edits": [%s], "probes": [{"prompt": "a", "kind": "locality"}]}',
        "target",
    ),
    "top_k zero": (
        '{"id": "1", "edits": [%s],'
        ' "probes": [{"prompt": "a", "target": "b", "kind": "locality", "top_k": 0}]}',
        "top_k",
    ),
    "exact a text": ('{"id": "1", "edits": [%s], "exact": "yes"}', "exact"),
    "probes an object": ('{"id": "1", "edits": [%s], "probes": {}}', "a list"),
    "unknown field": ('{"id": "1", "edits": [%s], "probe": []}', "'probes'"),
    "prompt beside edits": ('{"id": "1", "prompt": "a", "edits": [%s]}', "'prompt'"),
}


@pytest.mark.parametrize("name", LINES)
def test_broken_edits(errata: Errata, model: str, name: str) -> None:
    data, said = LINES[name]
    Path("e.jsonl").write_bytes(data)
    words = ("edit", "-m", model, "--edits", "e.jsonl", *FAST, "--out", "new")
    said_and_failed(errata, said, *words)
    assert not Path("new").exists()


@pytest.mark.parametrize("name", [*LINES, *CASES])
def test_broken_cases(errata: Errata, patch: Path, name: str) -> None:
    if name in LINES and name not in CASES:
        data, said = LINES[name]
    else:
        text, said = CASES[name]
        data = text.replace("%s", EDIT).encode() + b"\n"
    Path("e.jsonl").write_bytes(data)
    before = tree(patch)
    said_and_failed(errata, said, "verify", patch, "--cases", "e.jsonl", "--json")
    assert tree(patch) == before


def test_cases_are_no_edits(errata: Errata, model: str, cases: Path) -> None:
    said_and_failed(errata, "expected one edit per line", "edit", "-m", model, "--edits", cases)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verify", "nowhere"), "no patch folder"),
        (("show", "nowhere"), "no patch folder"),
        (("export", "nowhere", "--to", "lora", "--out", "new"), "no patch folder"),
        (("show", "file"), "no patch folder"),
        (("import", "nowhere", "--out", "new"), "not a readable LoRA folder"),
        (("verify", "patch", "--cases", "nowhere.jsonl"), "no such file or folder: nowhere.jsonl"),
        (("edit", "--edits", "nowhere.jsonl"), "cannot read nowhere.jsonl"),
        (("ask", "./nowhere", "--prompt", "x"), "no patch folder"),
        (("verify", "."), "not a complete patch"),
        (("compose", "patch", "nowhere", "-o", "new"), "no patch folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_not_there(errata: Errata, patch: Path, words: tuple[str, ...], said: str) -> None:
    Path("file").write_text("x", encoding="utf-8")
    said_and_failed(errata, said, *words)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "models"),
        ("name = ", "not valid TOML"),
        ('name = "x"\n[[models]]\n', "model"),
        ('name = "x"\nmodels = 3\n', "models"),
        ('name = "x"\nspeed = 9\n', "models"),
        ('name = "x"\n[models.a]\n', "r.toml"),
    ],
)
def test_broken_recipes(errata: Errata, text: str, said: str) -> None:
    Path("r.toml").write_text(text, encoding="utf-8")
    done = errata("sweep", "r.toml", "--dry-run")
    assert done.code in (1, 2)
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.startswith("error: ")


def test_there_are_many() -> None:
    assert len(PATCHES) + len(ADAPTERS) + len(LINES) + len(CASES) >= 100
