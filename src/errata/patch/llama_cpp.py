"""What llama.cpp calls the projections of a model, and how it stores them.

Names come from the tables of the package `gguf`. What differs besides the name is known here: llama
and its relatives keep the two rotary halves of each head interleaved, and some architectures have
attention weights in another order of rows. An architecture stands here once adapters on it were
compared with those of llama.cpp's own converter.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from errata.errors import MissingExtra, PatchError
from errata.model.stored import matrix_shape

if TYPE_CHECKING:
    from errata.model.lm import LM


@dataclass(frozen=True)
class Layout:
    """How llama.cpp stores an architecture.

    Attributes:
        arch: What its files call the architecture.
        rotated: Whether rows of `q_proj` and `k_proj` are stored with rotary halves interleaved.
        reordered: Modules whose rows are stored in an order that is not known here.
    """

    arch: str
    rotated: bool = False
    reordered: tuple[str, ...] = ()


LAYOUTS = {
    "llama": Layout("llama", rotated=True),
    "mistral": Layout("llama", rotated=True),
    "smollm3": Layout("smollm3", rotated=True),
    "granite": Layout("granite", rotated=True),
    "olmo": Layout("olmo", rotated=True),
    "olmo2": Layout("olmo2"),
    "olmo3": Layout("olmo2"),
    "qwen2": Layout("qwen2"),
    "qwen3": Layout("qwen3"),
    "gemma": Layout("gemma"),
    "gemma2": Layout("gemma2"),
    "gemma3": Layout("gemma3"),
    "gemma3_text": Layout("gemma3"),
    "gpt2": Layout("gpt2"),
    "phi": Layout("phi2"),
    "phi3": Layout("phi3"),
    "stablelm": Layout("stablelm"),
    "starcoder2": Layout("starcoder2"),
    "cohere": Layout("command-r"),
    "glm4": Layout("glm4"),
    "gpt_neox": Layout("gptneox", reordered=("query_key_value",)),
    "bloom": Layout("bloom", reordered=("query_key_value",)),
    "falcon": Layout("falcon", reordered=("query_key_value",)),
}
"""By `model_type` of the configuration of the text model."""


@dataclass(frozen=True)
class Names:
    """The names of one model.

    Attributes:
        layout: Its architecture.
        heads: Attention heads.
        groups: Heads of keys and values.
        tied: Whether the head has no weight of its own, but the embedding's.
        table: Names of tensors by those of modules.
    """

    layout: Layout
    heads: int
    groups: int
    tied: bool
    table: Any

    @classmethod
    def of(cls, lm: LM) -> Names:
        """Find the names of a model.

        Raises:
            MissingExtra: If the package `gguf` is not installed.
            PatchError: If the architecture is not one that is known here.
        """
        need_gguf()
        import gguf

        config = lm.model.config.get_text_config()
        layout = LAYOUTS.get(config.model_type)
        arches = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
        if layout is None or layout.arch not in arches:
            raise PatchError(
                f"adapters for llama.cpp are not written for the architecture {config.model_type}",
                f"Known: {', '.join(sorted(LAYOUTS))}. Export with --to lora and use llama.cpp's "
                "convert_lora_to_gguf.py, or with --to merged and convert the whole model.",
            )
        heads = int(config.num_attention_heads)
        groups = int(getattr(config, "num_key_value_heads", None) or heads)
        table = gguf.get_tensor_name_map(arches[layout.arch], int(config.num_hidden_layers))
        return cls(layout, heads, groups, bool(config.tie_word_embeddings), table)

    def tensor(self, path: str) -> str:
        """Return the name of a projection's weight.

        Args:
            path: Of a module of the base model.

        Raises:
            PatchError: If llama.cpp has none of the kind, or stores it in another order.
        """
        name = self.table.get_name(
            path.replace("language_model.", "") + ".weight", try_suffixes=(".weight",)
        )
        last = path.rpartition(".")[2]
        if name is None:
            raise PatchError(
                f"llama.cpp has no name for {path} of {self.layout.arch} models",
                "Export with --to merged and convert the whole model.",
            )
        if last in self.layout.reordered:
            raise PatchError(
                f"llama.cpp stores the rows of {path} (queries, keys and values in one) in another "
                "order: an adapter cannot be written for it",
                "Edit FFN matrices, or export with --to merged and convert the whole model.",
            )
        if name in ("token_embd.weight", "output.weight") and self.tied:
            raise PatchError(
                f"{path} is tied to the embedding: llama.cpp has no weight of its own for it",
                "Edit FFN matrices, or export with --to merged and convert the whole model.",
            )
        if name == "token_embd.weight":
            raise PatchError(
                f"{path} is the embedding, which an adapter of projections cannot change",
                "Edit FFN matrices, or export with --to merged and convert the whole model.",
            )
        return name

    def stored(self, path: str, B: Tensor) -> Tensor:
        """Return the left factor `[d_out, r]` with its rows as llama.cpp orders them."""
        heads = self._turned(path)
        if not heads:
            return B
        turned = B.reshape(heads, 2, B.shape[0] // heads // 2, B.shape[1]).swapaxes(1, 2)
        return turned.reshape(B.shape)

    def original(self, path: str, B: Tensor) -> Tensor:
        """Return the left factor with its rows as transformers orders them."""
        heads = self._turned(path)
        if not heads:
            return B
        turned = B.reshape(heads, B.shape[0] // heads // 2, 2, B.shape[1]).swapaxes(1, 2)
        return turned.reshape(B.shape)

    def _turned(self, path: str) -> int:
        last = path.rpartition(".")[2] if self.layout.rotated else ""
        return {"q_proj": self.heads, "k_proj": self.groups}.get(last, 0)

    def paths(self, lm: LM) -> dict[str, str]:
        """Return the path of every projection that can be adapted, by the name of its weight."""
        found = {}
        for path, module in lm.model.named_modules():
            if path and matrix_shape(module) is not None:
                try:
                    found[self.tensor(path)] = path
                except PatchError:
                    continue
        return found


def need_gguf() -> None:
    """Refuse to go on without the package that reads and writes GGUF.

    Raises:
        MissingExtra: Says what to install.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("adapters for llama.cpp", "gguf", "gguf")
