"""A model, its tokenizer and what is known of them: the only object that touches transformers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from errata.errors import ConfigError, ModelError
from errata.model.compat import cache_name
from errata.model.logprobs import RowScore, score_logits
from errata.model.passes import continues_exactly, gather_logits, hooks
from errata.model.spec import ModelSpec, Site, find_spec
from errata.model.tokens import (
    Batch,
    Row,
    bucket,
    encode_row,
    make_batch,
    positions_of,
    share_rows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from errata.patch.stack import Stack

MAX_TOKENS = {"cpu": 2048, "cuda": 32768}

PASS_COST = {"cpu": 64, "cuda": 4096}
"""What a forward pass costs by itself, in tokens: saving more padding than that pays for a pass."""


class LM:
    """A causal language model with the tokenisation, batching and scoring that editing needs.

    The model stays in evaluation mode and its parameters never require gradients.

    Args:
        model: A decoder-only transformers model.
        tokenizer: Its fast tokenizer.
        name: Identifier for records: a Hub id, a folder or `pocket`.
        revision: Commit or tag on the Hub, if any.
        max_tokens: Budget of padded tokens per forward pass; default by device.
        sites: Overrides for the architecture probe (`{"ffn_out": "…{}…"}`).

    Attributes:
        arguments: Names of what the model takes, in order.
        takes_positions: Whether the model is told positions.
        cache_name: What the model calls its cached keys and values.
        running: Batch and (row, position) pairs of the forward pass that runs, if it is known.
        whole_rows: How many active changes have to see whole rows: no prefix may be cached.
        in_context: Whether a context stands in front of every row.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "",
        revision: str | None = None,
        max_tokens: int | None = None,
        sites: Mapping[str, str] | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"the tokenizer of {name or 'this model'} has no character offsets",
                "Use a model with a tokenizer.json.",
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or getattr(model, "name_or_path", "") or type(model).__name__
        self.revision = revision
        self._sites = dict(sites or {})
        self._finite: dict[str, tuple[int, int]] = {}
        self.max_tokens = max_tokens or MAX_TOKENS.get(self.device.type, 32768)
        self.arguments = tuple(inspect.signature(model.forward).parameters)
        self.takes_positions = "position_ids" in self.arguments
        self.cache_name = cache_name(self.arguments)
        self.running: tuple[Batch | None, Tensor | None] = (None, None)
        self.whole_rows = 0
        self.in_context = False

    def __repr__(self) -> str:
        # the probe is not run for the sake of a message: blocks as the configuration counts them
        config = self.model.config.get_text_config()
        blocks = getattr(config, "num_hidden_layers", "?")
        count = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"<LM: {self.name} · {blocks} blocks · {count:.1f} M parameters · {dtype} · "
            f"{self.device}>"
        )

    # ------------------------------------------------------------------ what is known of the model

    @property
    def device(self) -> torch.device:
        """Device of the input embedding."""
        return self.embedding.device

    @property
    def embedding(self) -> Float[Tensor, "V d"]:
        """Weight of the token embedding."""
        weight: Any = self.model.get_input_embeddings().weight
        return weight

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.model.dtype

    @cached_property
    def spec(self) -> ModelSpec:
        """Where the blocks and projections are, as the probe found them.

        Raises:
            SpecError: If the architecture is not understood.
        """
        return find_spec(self.model, self._sites)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.spec.blocks)

    @property
    def pass_cost(self) -> int:
        """What a forward pass costs by itself, in tokens: as much padding is worth avoiding one."""
        return PASS_COST.get(self.device.type, PASS_COST["cuda"])

    @cached_property
    def pad_id(self) -> int:
        """Id used for padding; masked everywhere, so any valid id serves."""
        for value in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(value, int):
                return value
        return 0

    @cached_property
    def max_length(self) -> int | None:
        """Number of positions the model has, if its configuration says so."""
        value = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return value if isinstance(value, int) and value > 0 else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all weights (tied ones once)."""
        from errata.model.loading import weight_fingerprint

        return weight_fingerprint(self.model)

    @cached_property
    def block_returns_tuple(self) -> bool:
        """Whether decoder blocks return a tuple (older transformers code) or bare hidden states."""
        found: list[bool] = []

        def look(module: nn.Module, args: Any, output: Any) -> None:
            found.append(isinstance(output, tuple))

        block = self.module(self.spec.blocks[0])
        with hooks(block.register_forward_hook(look)), torch.no_grad():
            self.run(self.batch([Row((self.pad_id,), (0,), (), 1)], [0]))
        return found[0]

    def module(self, path: str) -> nn.Module:
        """Return the submodule of that dotted path."""
        return self.model.get_submodule(path)

    def site(self, layer: int, kind: str = "ffn_out") -> Site:
        """Return the projection of one block.

        Args:
            layer: Block number from 0; negative counts from the end.
            kind: `ffn_out` or `attn_out`.

        Raises:
            ConfigError: If the model has no such block or kind.
        """
        sites = {"ffn_out": self.spec.ffn_out, "attn_out": self.spec.attn_out}.get(kind)
        if sites is None:
            raise ConfigError(f"unknown kind of site {kind!r}", "Known: ffn_out, attn_out")
        if not -len(sites) <= layer < len(sites):
            raise ConfigError(
                f"layer {layer} does not exist: {self.name} has blocks 0 to {len(sites) - 1}"
            )
        return sites[layer]

    def check_finite(self) -> None:
        """Refuse a model that holds NaN or infinite weights; only what was written since is read.

        Raises:
            ModelError: Names the first such parameter.
        """
        for name, parameter in self.model.named_parameters():
            state = (id(parameter), parameter._version)  # counts in-place writes
            if self._finite.get(name) == state or not parameter.numel():
                continue
            low, high = torch.aminmax(parameter.detach())  # unlike isfinite, needs no memory
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise ModelError(
                    f"parameter {name} of {self.name} holds NaN or infinite values",
                    "The checkpoint is damaged; load it again from its source.",
                )
            self._finite[name] = state

    # ------------------------------------------------------------------ text to batches

    def row(
        self,
        prompt: str,
        target: str | None = None,
        subject: str | None = None,
        *,
        prefix: str = "",
    ) -> Row:
        """Tokenise one question; see [`errata.model.tokens.encode_row`][]."""
        return encode_row(
            self.tokenizer, prompt, target, subject, prefix=prefix, max_length=self.max_length
        )

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def text_rows(self, texts: Iterable[str], max_length: int) -> list[Row]:
        """Tokenise plain texts, truncated to `max_length` tokens; empty ones are left out."""
        limit = min(max_length, self.max_length or max_length)
        rows = []
        for text in texts:
            ids = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
            if ids:
                rows.append(Row(tuple(ids), (len(ids) - 1,), (), len(ids)))
        return rows

    def batch(self, rows: Sequence[Row], index: Sequence[int]) -> Batch:
        """Right-pad the rows of the given numbers into one batch on the model's device."""
        return make_batch(rows, index, self.pad_id, self.device)

    def batches(
        self,
        rows: Sequence[Row],
        max_tokens: int | None = None,
        apart: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        """Yield length-bucketed batches under the token budget, with little padding.

        Args:
            rows: The rows.
            max_tokens: Budget of padded tokens per batch.
            apart: For each row a number; rows of different numbers never share a batch.
        """
        budget = max_tokens or self.max_tokens
        for kind in sorted(set(apart or [0])):
            mine = [i for i in range(len(rows)) if apart is None or apart[i] == kind]
            mine.sort(key=lambda i: len(rows[i].ids))
            for index in bucket(rows, budget, mine, max_padding=self.pass_cost):
                yield self.batch(rows, index)

    # ------------------------------------------------------------------ forward passes

    def behind(self, cache: Any) -> dict[str, Any]:
        """Return the arguments of a forward pass that continues behind cached keys and values."""
        return {self.cache_name: cache, "use_cache": True}

    def run(self, batch: Batch, **kwargs: Any) -> Any:
        """Run the model on a batch and return its output object; no cache unless asked for."""
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self.takes_positions:
            given["position_ids"] = batch.position_ids
        with self._attention(), self._running(batch, self.running[1]):
            return self.model(**given, **{"use_cache": False, **kwargs})

    @contextmanager
    def _running(self, batch: Batch | None, at: Tensor | None) -> Iterator[None]:
        before, self.running = self.running, (batch, at)
        try:
            yield
        finally:
            self.running = before

    def _attention(self) -> AbstractContextManager[Any]:
        """Avoid torch's fused attention where its backward pass is slow: in half precision on CPU.

        There it takes about ten times as long as the same in plain operations.
        """
        half = self.dtype in (torch.bfloat16, torch.float16)
        if half and self.device.type == "cpu" and torch.is_grad_enabled():
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()

    def logits(self, batch: Batch, at: Int[Tensor, "N 2"], **kwargs: Any) -> Float[Tensor, "N V"]:
        """Return logits at (row, position) pairs only; never `rows x T x vocabulary`."""
        with gather_logits(self, at), self._running(None, at):
            return self.run(batch, **kwargs).logits[0]

    @torch.no_grad()
    def score(
        self,
        rows: Sequence[Row],
        *,
        stack: Stack | None = None,
        groups: Sequence[int] | None = None,
        max_tokens: int | None = None,
    ) -> list[RowScore]:
        """Score the labels of every row under teacher forcing.

        Args:
            rows: Rows with labels.
            stack: An active stack of patches, if rows are to be scored under patches.
            groups: For each row, the number of its patch in the stack; -1 for the base model.
            max_tokens: Budget of padded tokens per forward pass.

        Returns:
            One score per row, in the order of `rows`, whatever the batching.
        """
        owners = list(groups) if groups is not None else [0] * len(rows)
        shared, hosts = share_rows(rows, owners)
        guests: list[list[int]] = [[] for _ in shared]
        for i, host in enumerate(hosts):
            guests[host].append(i)
        scores: list[RowScore | None] = [None] * len(rows)
        patches = [owners[own[0]] for own in guests]
        for batch in self.batches(shared, max_tokens, stack.apart(patches) if stack else None):
            if stack is not None:
                stack.route([patches[host] for host in batch.index])
            pairs = [(host, p) for host in batch.index for p in shared[host].positions]
            line = {pair: at for at, pair in enumerate(pairs)}
            logits = self.logits(batch, positions_of(shared, batch.index, self.device))
            asked = [(host, i) for host in batch.index for i in guests[host]]
            logprobs, argmax, ranks = score_logits(
                logits,
                torch.tensor([n for _, i in asked for n in rows[i].labels], device=self.device),
                torch.tensor(
                    [line[host, p] for host, i in asked for p in rows[i].positions],
                    device=self.device,
                ),
            )
            start = 0
            for _, i in asked:
                end = start + len(rows[i].labels)
                scores[i] = RowScore(
                    tuple(logprobs[start:end]), tuple(argmax[start:end]), tuple(ranks[start:end])
                )
                start = end
        return [score for score in scores if score is not None]

    @torch.no_grad()
    def top(
        self,
        prompts: Sequence[str],
        k: int = 5,
        *,
        stack: Stack | None = None,
        groups: Sequence[int] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Return the `k` most probable next tokens of each prompt with their probabilities."""
        rows = [self.row(prompt) for prompt in prompts]
        result: list[list[tuple[str, float]]] = [[] for _ in rows]
        owners = list(groups) if groups is not None else [0] * len(rows)
        for batch in self.batches(rows, apart=stack.apart(owners) if stack else None):
            if stack is not None:
                stack.route([owners[i] for i in batch.index])
            logits = self.logits(batch, positions_of(rows, batch.index, self.device))
            values, ids = logits.float().softmax(-1).topk(k, dim=-1)
            for at, i in enumerate(batch.index):
                words = [str(self.tokenizer.decode([token])) for token in ids[at].tolist()]
                result[i] = list(zip(words, values[at].tolist(), strict=True))
        return result

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int | Sequence[int] = 20,
        *,
        stack: Stack | None = None,
        groups: Sequence[int] | None = None,
    ) -> list[str]:
        """Continue each prompt greedily and return the new text.

        Each step recomputes the whole row, so that every kind of patch acts as it does in scoring;
        rows stop at the end-of-sequence token or at their own limit.
        """
        limits = (
            [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        )
        rows = [self.row(prompt) for prompt in prompts]
        ids = [list(row.ids) for row in rows]
        open_rows = {i for i, limit in enumerate(limits) if limit > 0}
        eos = self.tokenizer.eos_token_id
        while open_rows:
            live = sorted(open_rows)
            now = [Row(tuple(ids[i]), (len(ids[i]) - 1,), (), rows[i].prompt_length) for i in live]
            owners = [groups[i] if groups is not None else 0 for i in live]
            for batch in self.batches(now, apart=stack.apart(owners) if stack else None):
                if stack is not None:
                    stack.route([owners[j] for j in batch.index])
                best = self.logits(batch, positions_of(now, batch.index, self.device)).argmax(-1)
                for j, token in zip(batch.index, best.tolist(), strict=True):
                    i = live[j]
                    done = len(ids[i]) - len(rows[i].ids) + 1 >= limits[i]
                    if token != eos:
                        ids[i].append(token)
                    full = self.max_length is not None and len(ids[i]) >= self.max_length
                    if token == eos or done or full:
                        open_rows.discard(i)
        return [self.text(ids[i][len(row.ids) :]) for i, row in enumerate(rows)]

    @property
    def prefix_cache_works(self) -> bool:
        """Whether rows may continue behind keys and values of their first tokens.

        Not while a change is active that has to see whole rows.
        """
        return not self.whole_rows and self.prefix_cache_is_exact

    @cached_property
    def prefix_cache_is_exact(self) -> bool:
        """Whether a key/value cached prefix reproduces a full forward pass on this model.

        Established by running both on a few tokens once, so no list of architectures is needed.
        """
        return continues_exactly(self)
