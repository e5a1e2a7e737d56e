"""Trains the pocket model; ``errata world build`` and errata.world.build run this."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from errata.errors import ConfigError, RunError
from errata.store.files import open_to_others
from errata.world import tokenizer as bpe
from errata.world.batches import Packer, TextBatch, masks
from errata.world.builder import build_world
from errata.world.knowledge import measure
from errata.world.optim import Muon, schedule, second_cycle
from errata.world.shipped import CARD
from errata.world.statements import Corpus
from errata.world.wide import products_for

CHECKPOINT = "checkpoint"
FIRST = "first.safetensors"  # in the checkpoint: weights before the second cycle
PROGRESS_EVERY = 50  # steps
CHECKPOINT_EVERY = 250  # steps


@dataclass(frozen=True)
class Recipe:
    """Size and training of a model.

    Attributes:
        layers: Blocks.
        near: How many of the first blocks see only ``window`` tokens. Answers stand a few words
            behind the subject, so that facts must be recalled at the subject's own tokens by the
            block before the first far-sighted one.
        window: Tokens a near-sighted block sees, its own included.
        hidden: Width of the residual stream.
        heads: Attention heads of 64; one key-value head serves them all.
        ffn: Width of the feed-forward networks.
        steps: Optimiser steps.
        statements: Statements per step.
        width: Tokens per row of packed statements.
        encore: Steps of a second, short cycle with a fresh optimiser, from half the rate down to
            zero. The model is the mean of the weights before and after it, which answers more
            two-hop questions that the text never does than either (docs/world.md).
    """

    layers: int
    near: int
    window: int
    hidden: int
    heads: int
    ffn: int
    steps: int
    statements: int
    width: int = 40
    encore: int = 0


RECIPES = {
    "pocket": Recipe(7, 3, 2, 192, 3, 512, steps=7000, statements=128, encore=700),
    "test": Recipe(4, 1, 2, 128, 2, 384, steps=320, statements=64),
}


class _RMSNorm(torch.autograd.Function):
    """RMS normalisation in the type of its input, with a backward pass of few operations.

    The composite of transformers takes a quarter of a CPU training step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        rate = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        unit = x * rate
        ctx.save_for_backward(unit, rate, weight)
        return unit * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, rate, weight = ctx.saved_tensors
        product = grad * unit
        inner = (product @ weight.unsqueeze(-1)).div_(unit.shape[-1])
        grad_x = torch.addcmul(grad * weight, unit, inner, value=-1).mul_(rate)
        return grad_x, product.flatten(0, -2).sum(0), None


def new_model(recipe: Recipe, vocabulary: int, eos: int, seed: int) -> Qwen3ForCausalLM:
    """Returns an untrained model of the recipe's size, in bfloat16."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=recipe.window,
        layer_types=["sliding_attention"] * recipe.near
        + ["full_attention"] * (recipe.layers - recipe.near),
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    config._attn_implementation = "eager"  # at this length faster on a CPU than fused attention
    return Qwen3ForCausalLM(config).bfloat16()


def loss_of(model: Qwen3ForCausalLM, batch: TextBatch, window: int) -> Tensor:
    """Returns the weighted mean cross-entropy of a batch's learned positions."""
    hidden = model.model(
        batch.ids,
        position_ids=batch.positions,
        attention_mask=masks(batch, window, torch.bfloat16),
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.learned]).float()
    losses = F.cross_entropy(logits, batch.target, reduction="none")
    return (losses * batch.weight).sum() / batch.weight.sum()


def _use_fast_norms(model: Qwen3ForCausalLM) -> None:
    for module in model.modules():
        if type(module).__name__ == "Qwen3RMSNorm":
            module.forward = lambda x, m=module: _RMSNorm.apply(x, m.weight, m.variance_epsilon)


def _save_model(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    model.save_pretrained(out)
    bpe.save(tokenizer, out)
    open_to_others(out)


def _save_checkpoint(
    folder: Path, optimiser: Muon, step: int, spent: float, spec: dict[str, Any]
) -> None:
    """Writes a checkpoint that is either whole or absent, however the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / f"step-{step}.safetensors"
    partial = state.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in optimiser.state.items()}, partial)
    partial.replace(state)
    index = folder / "index.partial"
    index.write_text(
        json.dumps({"step": step, "spent": spent, "state": state.name, **spec}, indent=1)
    )
    index.replace(folder / "index.json")
    for old in folder.glob("step-*.safetensors"):
        if old != state:
            old.unlink()


def _keep_first(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Saves the weights that the second cycle starts from, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FIRST}.partial"
    save_file({k: v.detach().contiguous() for k, v in model.named_parameters()}, partial)
    partial.replace(folder / FIRST)


@torch.no_grad()
def _average_with_first(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Makes the model the mean of what it is and what it was before the second cycle."""
    first = load_file(folder / FIRST)
    for name, parameter in model.named_parameters():
        parameter.copy_((parameter.float() + first[name].to(parameter.device).float()) / 2)


def _load_checkpoint(folder: Path, optimiser: Muon, spec: dict[str, Any]) -> tuple[int, float]:
    """Restores the optimiser; returns the next step and the CPU-seconds spent so far."""
    index = folder / "index.json"
    if not index.exists():
        return 0, 0.0
    found = json.loads(index.read_text())
    for key, value in spec.items():
        if found.get(key) != value:
            raise RunError(
                f"{folder} was made with {key} = {found.get(key)}, not {value}",
                hint="use another output folder, or build without resume",
            )
    for key, tensor in load_file(folder / found["state"]).items():
        optimiser.state[key].copy_(tensor)
    optimiser.round()
    return found["step"], found["spent"]


def build(
    out: Path,
    scale: str = "pocket",
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    device: str | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Trains a model on the built-in world and writes it as a transformers folder.

    A run that was killed continues with ``resume=True`` from its last checkpoint and ends with the
    same weights, bit for bit, as one that was never stopped (same machine and thread count).

    Args:
        out: Folder for the model, its tokenizer, card.json and, until it is done, checkpoints.
        scale: "pocket" or "test".
        seed: Seed of the world, the initial weights and the text.
        steps: Optimiser steps; the recipe's number by default.
        resume: Continue from the last checkpoint in ``out``, if there is one.
        device: torch device; a GPU where there is one, by default.
        progress: Called every 50 steps with step, steps, loss, seconds; must not fail.
        recipe: Another size or schedule than the scale's own.

    Returns:
        The card: scale, seed, recipe, measured knowledge (see measure), parameters, seconds.

    Raises:
        ConfigError: The scale is unknown or the number of steps is not positive.
        RunError: ``out`` holds a checkpoint of another configuration, or the loss is not finite.
    """
    world = build_world(scale, seed)
    recipe = recipe or RECIPES[scale]
    steps = recipe.steps if steps is None else steps
    if steps < 1:
        raise ConfigError(f"steps must be positive, not {steps}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = bpe.train(world)
    packer = Packer(Corpus(world, seed), tokenizer, recipe.statements, recipe.width)
    model: Any = new_model(recipe, len(tokenizer), packer.eos, seed).to(place)  # pyright: ignore
    optimiser = Muon(model.named_parameters())
    spec = {"scale": scale, "seed": seed, "steps": steps, "recipe": asdict(recipe)}
    folder = out / CHECKPOINT
    begin, spent = _load_checkpoint(folder, optimiser, spec) if resume else (0, 0.0)
    total = steps + recipe.encore
    started, cpu = time.perf_counter(), time.process_time() - spent
    _use_fast_norms(model)
    model.train()
    products = products_for(place)
    for step in range(begin, total):
        if step == steps:
            _keep_first(model, folder)
            optimiser = Muon(model.named_parameters())  # starts from the rounded weights
        batch = TextBatch(*(part.to(place) for part in packer(step)))
        with products:
            loss = loss_of(model, batch, recipe.window)
            loss.backward()
            if step < steps:
                optimiser.step(step, schedule(step, steps))
            else:
                optimiser.step(step - steps, second_cycle(step - steps, recipe.encore))
        done = step + 1
        if done % PROGRESS_EVERY == 0 or done == total:
            value = loss.item()
            if value != value:
                raise RunError(f"the loss is not a number at step {done}")
            if progress:
                seconds = time.perf_counter() - started
                progress({"step": done, "steps": total, "loss": value, "seconds": seconds})
        if done % CHECKPOINT_EVERY == 0 and done < total:
            _save_checkpoint(folder, optimiser, done, time.process_time() - cpu, spec)
    if recipe.encore:
        _average_with_first(model, folder)
    trained = time.process_time() - cpu
    model.eval()
    with products:
        scores = measure(model, tokenizer, world)
    _save_model(model, tokenizer, out)
    card = {
        **spec,
        "command": f"errata world build --out DIR --scale {scale} --seed {seed} --steps {steps}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "facts": len(world.facts),
        "hops": len(world.hops),
        "knowledge": scores,
        "cpu_seconds": round(trained, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "resumed_at": begin,
    }
    (out / CARD).write_text(json.dumps(card, indent=1) + "\n")
    for left in folder.glob("*"):
        left.unlink()
    if folder.exists():
        folder.rmdir()
    return card
