"""The sites of many architectures are found by behaviour; the expected paths are hand-written."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from tests.tiny_models import DECLINED, INNER, LAYERS, TINY, VOCAB, WIDTH, llama
from torch import nn

from errata.errors import SpecError
from errata.model.spec import ModelSpec, describe, find_spec, weight_of

LLAMA = (
    "model.layers.{}",
    "mlp.down_proj",
    "self_attn.o_proj",
    ("mlp.gate_proj", "mlp.up_proj"),
    "model.norm",
    "lm_head",
    "model.embed_tokens",
)
GPT2 = (
    "transformer.h.{}",
    "mlp.c_proj",
    "attn.c_proj",
    ("mlp.c_fc",),
    "transformer.ln_f",
    "lm_head",
    "transformer.wte",
)
BLOOM = (
    "transformer.h.{}",
    "mlp.dense_4h_to_h",
    "self_attention.dense",
    ("mlp.dense_h_to_4h",),
    "transformer.ln_f",
    "lm_head",
    "transformer.word_embeddings",
)
OPT = (
    "model.decoder.layers.{}",
    "fc2",
    "self_attn.out_proj",
    ("fc1",),
    "model.decoder.final_layer_norm",
    "lm_head",
    "model.decoder.embed_tokens",
)
FUSED = (*LLAMA[:3], ("mlp.gate_up_proj",), *LLAMA[4:])
# blocks, FFN output, attention output, other FFN matrices, final norm, head, embedding
EXPECTED = {
    "gpt2": GPT2,
    "gptj": ("transformer.h.{}", "mlp.fc_out", "attn.out_proj", ("mlp.fc_in",), *GPT2[4:]),
    "gpt_neox": (
        "gpt_neox.layers.{}",
        "mlp.dense_4h_to_h",
        "attention.dense",
        ("mlp.dense_h_to_4h",),
        "gpt_neox.final_layer_norm",
        # transformers called it `embed_out` in 5.0
        next(name for name in ("lm_head", "embed_out") if hasattr(TINY["gpt_neox"](), name)),
        "gpt_neox.embed_in",
    ),
    "opt": OPT,
    "opt-postnorm": (*OPT[:4], "", *OPT[5:]),
    "bloom": BLOOM,
    "falcon": BLOOM,
    "phi": (
        *("model.layers.{}", "mlp.fc2", "self_attn.dense", ("mlp.fc1",)),
        *("model.final_layernorm", "lm_head", "model.embed_tokens"),
    ),
    "phi3": FUSED,
    "glm4": FUSED,
    "starcoder2": (*LLAMA[:1], "mlp.c_proj", "self_attn.o_proj", ("mlp.c_fc",), *LLAMA[4:]),
    **dict.fromkeys(
        ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2"], LLAMA
    ),
    **dict.fromkeys(["stablelm", "cohere", "granite"], LLAMA),
}
CONV1D = {"gpt2", "gpt2-square"}
TIED = {"gpt2", "opt", "bloom", "falcon", "gemma", "gemma2", "gemma3", "cohere", "starcoder2"}


def expected(name: str) -> tuple:
    return EXPECTED.get(name) or EXPECTED[name.partition("-")[0]]


def paths(spec: ModelSpec) -> tuple:
    """Everything found, as the table writes it, checking that all blocks agree."""
    for layer, block in enumerate(spec.blocks):
        assert block == spec.blocks[0].rpartition(".")[0] + f".{layer}"
    relative = {
        (
            ffn.path.removeprefix(f"{block}."),
            attn.path.removeprefix(f"{block}."),
            tuple(site.path.removeprefix(f"{block}.") for site in inner),
        )
        for block, ffn, attn, inner in zip(
            spec.blocks, spec.ffn_out, spec.attn_out, spec.ffn_in, strict=True
        )
    }
    assert len(relative) == 1
    template = spec.blocks[0].rpartition(".")[0] + ".{}"
    return (template, *relative.pop(), spec.final_norm, spec.head, spec.embedding)


def ids(n: int = 6) -> torch.Tensor:
    return torch.randint(0, VOCAB, (1, n), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", TINY)
def test_sites_of_every_architecture(name: str):
    model = TINY[name]()
    spec = find_spec(model)
    assert paths(spec) == expected(name)
    assert spec.n_blocks == (1 if name == "llama-onelayer" else LAYERS)
    assert spec.d_model == WIDTH
    assert spec.d_ffn == (WIDTH if "square" in name else 4 * WIDTH if name == "bloom" else INNER)
    for site in (*spec.ffn_out, *spec.attn_out, *(s for inner in spec.ffn_in for s in inner)):
        assert site.transposed == (name in CONV1D)
        assert site.bias == (model.get_submodule(site.path).bias is not None)
        assert tuple(weight_of(model, site).shape) == (site.d_out, site.d_in)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EXPECTED)
def test_half_precision(name: str, dtype: torch.dtype):
    with torch.no_grad():
        assert paths(find_spec(TINY[name]().to(dtype))) == expected(name)


@pytest.mark.parametrize("name", TINY)
def test_the_ffn_output_is_added_to_the_residual_stream(name: str):
    """A rank-one edit built from a token's key moves projection and block output at that token."""
    model = TINY[name]().double()
    spec = find_spec(model)
    layer = spec.n_blocks - 1
    site = spec.ffn_out[layer]
    keys, values, outputs = [], [], []
    handles = [
        model.get_submodule(site.path).register_forward_hook(
            lambda m, a, out: (keys.append(a[0].reshape(-1, site.d_in)),
                               values.append(out.reshape(-1, site.d_out)))[-1:] and None
        ),
        model.get_submodule(spec.blocks[layer]).register_forward_hook(
            lambda m, a, out: outputs.append(out[0] if isinstance(out, tuple) else out) and None
        ),
    ]  # fmt: skip
    token = 2
    with torch.no_grad():
        model(ids(), use_cache=False)
        key = keys[0][token]
        r = torch.linspace(-1, 1, site.d_out, dtype=torch.float64)
        weight_of(model, site).add_(torch.outer(r, key) / (key @ key))
        model(ids(), use_cache=False)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(values[1][token] - values[0][token], r, rtol=0, atol=1e-12)
    moved = (outputs[1] - outputs[0]).reshape(-1, spec.d_model)[token]
    if name.partition("-")[0] in {"gemma2", "gemma3", "olmo2", "glm4"}:
        assert moved.norm() > 0  # a norm stands between projection and residual stream
    elif name == "opt-postnorm":
        assert moved.norm() > 0  # a norm stands behind the sum
    else:
        scale = 0.22 if name == "granite" else 1.0
        torch.testing.assert_close(moved, scale * r, rtol=0, atol=1e-12)


def test_weight_of_conv1d_is_a_writable_view():
    model = TINY["gpt2-square"]()
    site = find_spec(model).ffn_out[1]
    module = model.get_submodule(site.path)
    with torch.no_grad():
        weight_of(model, site)[3, 5] = 7.0
    assert module.weight[5, 3] == 7.0
    k = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    expected = weight_of(model, site) @ k + module.bias
    torch.testing.assert_close(module(k), expected)


def state(model: nn.Module) -> dict:
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "training": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [parameter.grad is None for parameter in model.parameters()],
        "hooks": [
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in model.modules()
        ],
        "rng": torch.random.get_rng_state(),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama", "cohere-qk", "mamba", "bert"])
def test_the_model_and_the_random_state_stay_as_they_are(name: str):
    model = {**TINY, **DECLINED}[name]()
    model.train()
    next(iter(model.children())).eval()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    before = state(model)
    if name in TINY:
        find_spec(model)
    else:
        with pytest.raises(SpecError):
            find_spec(model)
    after = state(model)
    for key in ("training", "requires_grad", "grad", "hooks"):
        assert before[key] == after[key]
    assert torch.equal(before["rng"], after["rng"])
    for path, tensor in before["weights"].items():
        assert torch.equal(tensor, after["weights"][path])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context):
    model = TINY["gpt2"]()
    with context():
        assert paths(find_spec(model)) == GPT2


def test_weights_made_in_inference_mode_are_declined():
    with torch.inference_mode():
        model = TINY["gpt2"]()
    with pytest.raises(SpecError, match="inference_mode"):
        find_spec(model)


def test_works_with_dropout_set_and_with_sdpa():
    model = TINY["gpt2"]()
    model.set_attn_implementation("sdpa")
    assert paths(find_spec(model.train())) == GPT2


def test_zero_initialised_projections_are_found():
    model = TINY["llama"]()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    assert paths(find_spec(model)) == LLAMA


def test_the_answer_is_kept_per_model_and_overrides():
    model = TINY["llama"]()
    spec = find_spec(model)
    assert find_spec(model) is spec
    assert find_spec(model, {}) is spec
    assert find_spec(model, {"final_norm": "model.norm"}) is not spec
    assert find_spec(copy.deepcopy(model)) == spec


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mamba", "state-space"),
        ("mamba2", "no feed-forward network"),
        ("rwkv", "recurrent"),
        ("xlstm", "not by attention"),
        ("t5", "encoder-decoder"),
        ("bert", "an encoder, not a decoder"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_declined(name: str, words: str):
    with pytest.raises(SpecError, match=words) as caught:
        find_spec(DECLINED[name]())
    assert name in {"t5", "bert"} or "\n  " in caught.value.message  # lists what was found


class Experts(nn.Module):
    """A mixture in the old style: a list of feed-forward networks and a router."""

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 2, bias=False)
        self.experts = nn.ModuleList([ffn, copy.deepcopy(ffn)])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gates = self.router(hidden).softmax(-1)
        return sum(gates[..., i : i + 1] * e(hidden) for i, e in enumerate(self.experts))


def test_a_list_of_experts_is_declined_with_all_writers():
    model = llama()
    model.model.layers[1].mlp = Experts(model.model.layers[1].mlp)
    with pytest.raises(SpecError, match="mixture of experts") as caught:
        find_spec(model)
    for writer in ("mlp.router", "mlp.experts.0.down_proj", "mlp.experts.1.down_proj"):
        assert f"model.layers.1.{writer}" in caught.value.message
    assert "--site ffn_out=PATH_WITH_{}" in str(caught.value)


def test_a_model_without_a_head_is_declined():
    with pytest.raises(SpecError, match="no language-model head"):
        find_spec(TINY["llama"]().model)


def test_an_adapter_on_top_of_a_projection_is_not_taken_for_it():
    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x.flip(-1) @ self.weight.T

    model = llama()
    for layer in model.model.layers:
        layer.mlp.down_proj.__class__ = Adapted
    with pytest.raises(SpecError, match="merge adapters"):
        find_spec(model)


def test_names_play_no_role():
    """The modules of a block trade their names: attention answers to `mlp`, up to `down` …"""
    model = llama(num_key_value_heads=4, intermediate_size=WIDTH)
    for layer in model.model.layers:
        attention, ffn = layer.self_attn, layer.mlp

        class Renamed(nn.Module):
            def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> None:
                super().__init__()
                self.o_proj, self.down_proj, self.c_fc = gate, up, down

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.c_fc(self.o_proj(x).sigmoid() * self.down_proj(x))

        layer.mlp = nn.Sequential(Renamed(ffn.gate_proj, ffn.up_proj, ffn.down_proj))
        projections = nn.ModuleDict({"down_proj": attention.o_proj})
        attention.add_module("mlp", projections)
        del attention.o_proj
        object.__setattr__(attention, "o_proj", projections["down_proj"])
    spec = find_spec(model)
    assert spec.ffn_out[2].path == "model.layers.2.mlp.0.c_fc"
    assert spec.attn_out[2].path == "model.layers.2.self_attn.mlp.down_proj"
    assert [site.path for site in spec.ffn_in[2]] == [
        "model.layers.2.mlp.0.o_proj",
        "model.layers.2.mlp.0.down_proj",
    ]


def test_the_library_holds_no_module_names():
    root = Path(__file__).resolve().parents[2] / "src" / "errata" / "model"
    parts = {
        part
        for row in EXPECTED.values()
        for path in (*row[1:3], *row[3], row[4])
        for part in path.split(".")
    } - {"", "model"}
    for name in ("spec.py", "_search.py", "_wiring.py", "_probe.py"):
        code = (root / name).read_text()
        found = [part for part in parts if re.search(rf"""(["'])([\w.]+\.)?{part}\1""", code)]
        assert not found, f"{name} names {found}"
        assert "model_type" not in code


class TestOverrides:
    def test_replace_what_the_probe_finds(self):
        model = TINY["llama-square"]()
        sites = {
            "blocks": "model.layers.{}",
            "ffn_out": "model.layers.{}.mlp.down_proj",
            "attn_out": "model.layers.{}.self_attn.o_proj",
            "final_norm": "model.norm",
            "head": "lm_head",
        }
        assert paths(find_spec(model, sites)) == LLAMA
        other = find_spec(model, {"final_norm": "model.layers.2.input_layernorm"})
        assert other.final_norm == "model.layers.2.input_layernorm"

    def test_settle_what_is_ambiguous(self):
        model = llama()
        for layer in model.model.layers:
            layer.mlp = Experts(layer.mlp)
        template = "model.layers.{}.mlp.experts.1.down_proj"
        spec = find_spec(model, {"ffn_out": template})
        assert [site.path for site in spec.ffn_out] == [template.format(i) for i in range(LAYERS)]
        assert [site.path for site in spec.ffn_in[0]] == [
            "model.layers.0.mlp.experts.1.gate_proj",
            "model.layers.0.mlp.experts.1.up_proj",
        ]

    @pytest.mark.parametrize(
        ("sites", "words"),
        [
            ({"ffn": "x"}, "unknown site 'ffn'"),
            ({"ffn_out": "model.layers.{}.mlp.down"}, r"no module 'model.layers.0.mlp.down'"),
            ({"ffn_out": "model.layers.0.mlp.down_proj"}, r"expected \{\}"),
            ({"ffn_out": "model.layers.{}.mlp.up_proj"}, "is not a projection inside"),
            ({"ffn_out": "model.layers.{}.mlp"}, "is not a projection inside"),
            ({"ffn_out": "model.layers.{}.self_attn.o_proj"}, "both"),
            ({"attn_out": "model.layers.{}.mlp.gate_proj"}, "is not a projection inside"),
            ({"blocks": "model.layer.{}"}, "no module 'model.layer'"),
            ({"blocks": "model.norm"}, "no blocks found"),
            ({"head": "lm_heads"}, "no module 'lm_heads'"),
            ({"final_norm": "norm"}, "no module 'norm'"),
        ],
    )
    def test_wrong_ones_are_refused_with_a_hint(self, sites: dict[str, str], words: str):
        with pytest.raises(SpecError, match=words):
            find_spec(TINY["llama"](), sites)

    def test_a_close_name_is_suggested(self):
        with pytest.raises(SpecError) as caught:
            find_spec(TINY["llama"](), {"ffn_out": "model.layers.{}.mlp.down"})
        assert "model.layers.0.mlp.down_proj" in (caught.value.hint or "")


def test_layer_of():
    spec = find_spec(TINY["llama"]())
    assert spec.layer_of("model.layers.2.mlp.down_proj.weight") == 2
    assert spec.layer_of("model.layers.1") == 1
    with pytest.raises(SpecError, match="lies in no block"):
        spec.layer_of("model.norm")
    with pytest.raises(SpecError):
        spec.layer_of("model.layers.20")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_describe(name: str):
    model = TINY[name]()
    spec = find_spec(model)
    found = describe(spec, model)
    row = expected(name)
    assert found["blocks"] == row[0]
    assert found["ffn_out"] == f"{row[0]}.{row[1]}"
    assert found["attn_out"] == f"{row[0]}.{row[2]}"
    assert found["ffn_in"] == [f"{row[0]}.{path}" for path in row[3]]
    assert found["ffn_out_stored"] == ("d_in × d_out" if name == "gpt2" else "d_out × d_in")
    assert (found["n_blocks"], found["d_model"], found["d_ffn"]) == (LAYERS, WIDTH, INNER)
    assert found["tied_head"] == (name in TIED)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert "tied_head" not in describe(spec)
