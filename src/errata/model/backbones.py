"""The backbones that settings were published for, and which of them a model is.

A model is known by its own configuration (kind, widths, depth, vocabulary, positions), whatever its
folder is called; by its name where configurations are shared or none is at hand. No model is loaded
and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from errata.config import backbone_of
from errata.untrusted import read_object
from errata.world.shipped import POCKET, is_shipped, knows_world, pocket_path

ADDED_TOKENS = 64
"""Entries that fine-tuning adds to a vocabulary at most (a padding token, a multiple of 64)."""


@dataclass(frozen=True)
class Backbone:
    """A published model: its sizes and what it is called.

    Attributes:
        name: Key in the tables of published settings.
        parameters: All parameters.
        layers: Blocks.
        hidden: Width of the hidden state, the output of an FFN.
        inner: Width inside the FFN, the input of its output matrix.
        gated: Whether the FFN has a gate, and so two matrices that lead in.
        kind: `model_type` of its configuration.
        vocabularies: Sizes of its vocabulary, as released.
        positions: Numbers of positions in its configurations, as released; empty: any.
        names: Ids on the Hub of what is this backbone: base, chat and instruction-tuned alike.
    """

    name: str
    parameters: float
    layers: int
    hidden: int
    inner: int
    gated: bool
    kind: str = ""
    vocabularies: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def signal(self) -> int:
        """Width of the signal of an FFN matrix: its input and its output together."""
        return self.hidden + self.inner

    @cached_property
    def called(self) -> frozenset[str]:
        """Its name and ids, lower case, without owners."""
        return frozenset(backbone_of(name) for name in (self.name, *self.names))


def _gpt2(
    name: str, parameters: float, layers: int, hidden: int, names: tuple[str, ...] = ()
) -> Backbone:
    return Backbone(
        name, parameters, layers, hidden, 4 * hidden, False,
        kind="gpt2", vocabularies=(50257,), positions=(1024,),
        names=(f"openai-community/{name}", *names),
    )  # fmt: skip


BACKBONES: dict[str, Backbone] = {
    model.name: model
    for model in (
        _gpt2("gpt2-medium", 354.8e6, 24, 1024),
        _gpt2("gpt2-large", 774.0e6, 36, 1280),
        _gpt2("gpt2-xl", 1.558e9, 48, 1600),
        Backbone(
            "gpt-j-6b", 6.051e9, 28, 4096, 16384, False,
            kind="gptj", vocabularies=(50400,), positions=(2048,), names=("EleutherAI/gpt-j-6b",),
        ),
        Backbone(
            "gpt-neox-20b", 20.554e9, 44, 6144, 24576, False,
            kind="gpt_neox", vocabularies=(50432,), positions=(2048,),
            names=("EleutherAI/gpt-neox-20b",),
        ),
        Backbone(
            "llama-2-7b", 6.738e9, 32, 4096, 11008, True,
            kind="llama", vocabularies=(32000,), positions=(4096,),
            names=(
                "meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b-hf",
                "meta-llama/Llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf", "llama2-7b",
            ),
        ),
        Backbone(
            "llama-3-8b", 8.030e9, 32, 4096, 14336, True,
            kind="llama", vocabularies=(128256,), positions=(8192,),
            names=(
                "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct",
                "llama-3-8b-instruct", "llama3-8b", "llama3-8b-instruct",
            ),
        ),
        Backbone(
            "llama-3.1-8b", 8.030e9, 32, 4096, 14336, True,
            kind="llama", vocabularies=(128256,), positions=(131072,),
            names=(
                "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct",
                "meta-llama/Meta-Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B-Instruct",
            ),
        ),
        Backbone(
            "llama-3.2-3b", 3.213e9, 28, 3072, 8192, True,
            kind="llama", vocabularies=(128256,), positions=(131072,),
            names=("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
        ),
        Backbone(
            "mistral-7b", 7.242e9, 32, 4096, 14336, True,
            kind="mistral", vocabularies=(32000, 32768), positions=(32768,),
            names=(
                "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.3",
                "mistralai/Mistral-7B-Instruct-v0.1", "mistralai/Mistral-7B-Instruct-v0.2",
                "mistralai/Mistral-7B-Instruct-v0.3",
            ),
        ),
        Backbone(
            "qwen-7b", 7.721e9, 32, 4096, 11008, True,
            kind="qwen", vocabularies=(151936,), names=("Qwen/Qwen-7B", "Qwen/Qwen-7B-Chat"),
        ),
        # Qwen2 and Qwen2.5 are told apart by their names alone
        Backbone(
            "qwen2.5-7b", 7.616e9, 28, 3584, 18944, True,
            kind="qwen2", vocabularies=(152064,), positions=(131072, 32768),
            names=("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"),
        ),
        Backbone(
            "qwen2-7b", 7.616e9, 28, 3584, 18944, True,
            kind="qwen2", vocabularies=(152064,), positions=(131072, 32768),
            names=("Qwen/Qwen2-7B", "Qwen/Qwen2-7B-Instruct"),
        ),
        Backbone(
            "qwen3-1.7b", 1.721e9, 28, 2048, 6144, True,
            kind="qwen3", vocabularies=(151936,), positions=(40960, 32768),
            names=("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B-Base"),
        ),
        Backbone(
            "qwen3-8b", 8.191e9, 36, 4096, 12288, True,
            kind="qwen3", vocabularies=(151936,), positions=(40960, 32768),
            names=("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base"),
        ),
        Backbone(
            POCKET, 3.9e6, 7, 192, 512, True,
            kind="qwen3", vocabularies=(5848,), positions=(256,),
        ),
    )
}  # fmt: skip
"""By name, from their published configurations."""


@dataclass(frozen=True)
class Shape:
    """What a configuration says of a model, as far as backbones are told apart by it."""

    kind: str
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    positions: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """Read a configuration (`config.json`); None if it does not say what is needed."""
        nested = config.get("text_config")
        config = nested if isinstance(nested, Mapping) else config

        def number(*names: str) -> int:
            found = (config.get(name) for name in names)
            return next((value for value in found if isinstance(value, int)), 0)

        kind, hidden = str(config.get("model_type", "")), number("hidden_size", "n_embd")
        inner = number("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
        if kind == "qwen":  # counts the gate's matrix and the other one together
            inner //= 2
        shape = cls(
            kind, number("num_hidden_layers", "n_layer"), hidden, inner, number("vocab_size"),
            number("max_position_embeddings", "n_positions", "seq_length"),
        )  # fmt: skip
        return shape if shape.layers and shape.hidden else None

    def is_of(self, model: Backbone) -> bool:
        """Whether kind, widths and depth are those of a backbone."""
        theirs = (model.kind, model.layers, model.hidden, model.inner)
        return (self.kind, self.layers, self.hidden, self.inner) == theirs

    def fits(self, model: Backbone) -> bool:
        """Whether the vocabulary and positions are, too."""
        words = any(0 <= self.vocabulary - size <= ADDED_TOKENS for size in model.vocabularies)
        return words and (not model.positions or self.positions in model.positions)


@dataclass(frozen=True)
class Known:
    """The backbone that a model is.

    Attributes:
        model: The backbone.
        by: How it was recognised: `configuration`, `name`, or `card` (pocket).
        others: Backbones of the same configuration that it could be as well.
    """

    model: Backbone
    by: str
    others: tuple[Backbone, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """Keys in the tables of published settings, the likeliest first."""
        return (self.model.name, *(other.name for other in self.others))

    def __str__(self) -> str:
        text = f"{self.model.name}, by its {self.by}"
        if self.others:
            shared = " and ".join(other.name for other in self.others)
            text += f", which it shares with {shared}; its name does not say which"
        return text


def identify(name: str, config: Mapping[str, Any] | None = None) -> Known | None:
    """Return which backbone a model is; None if it is none of those known.

    Args:
        name: A Hub id, a folder or a nickname; owners and case do not matter.
        config: The model's configuration; without it the folder's, if it is one, is read.
    """
    config = _config_of(name) if config is None else config
    shape = None if config is None else Shape.of(config)
    if shape is None:
        called = [model for model in BACKBONES.values() if _is_called(model, name)]
        return Known(called[0], "name") if called else None
    alike = [model for model in BACKBONES.values() if shape.is_of(model)]
    # what a small model learned depends on what it was taught, which only its card says
    alike = [model for model in alike if model.name != POCKET or knows_world(name)]
    called = [model for model in alike if _is_called(model, name)]
    fitting = [model for model in alike if shape.fits(model)]
    if not (called or fitting):
        return None
    first, *others = called or fitting
    if first.name == POCKET:
        return Known(first, "card")
    by = "name" if called and called != fitting else "configuration"
    return Known(first, by, tuple(others))


def keys_for(name: str, known: Known | None) -> tuple[str, ...]:
    """Return where settings for a model are looked up in an editor's tables, the likeliest first.

    Tables of other distributions may name models that are not among the backbones here: those go by
    their name alone.
    """
    if known is not None:
        return known.names
    own = backbone_of(name.rstrip("/"))
    return () if own in BACKBONES else (own,)


def _is_called(model: Backbone, name: str) -> bool:
    if model.name == POCKET:
        return is_shipped(name)
    return backbone_of(name.rstrip("/")) in model.called


def _config_of(name: str) -> Mapping[str, Any] | None:
    """Return the configuration in a folder, or of the model that comes with errata."""
    folder = pocket_path() if is_shipped(name) else Path(name).expanduser()
    try:
        return read_object(folder / "config.json")
    except (OSError, ValueError):
        return None
