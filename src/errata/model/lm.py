"""A model, its tokenizer and what is known of them: the only object that touches transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from errata.arguments import expect
from errata.case import Chat
from errata.errors import ModelError, PatchError, SpecError
from errata.model.asking import score_rows, top_tokens
from errata.model.backbones import Known, identify
from errata.model.compat import cache_name
from errata.model.generating import continuations
from errata.model.hooks import installed_on
from errata.model.logprobs import RowScore
from errata.model.multiplying import quick_products
from errata.model.once import Once
from errata.model.passes import gather_logits
from errata.model.prefixes import continues_exactly
from errata.model.products import Compute, rounded_products, rounds
from errata.model.spec import ModelSpec, Site, find_spec
from errata.model.stored import embedding_of, home_of, is_spread, keep_differentiable
from errata.model.texts import Prompt, Texts
from errata.model.tokens import Batch, Row, bucket, make_batch, patched

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from errata.patch.stack import Stack

T = TypeVar("T")

MAX_TOKENS = {"cpu": 2048, "cuda": 32768}

PASS_COST = {"cpu": 64, "cuda": 4096}
"""What a forward pass costs by itself, in tokens: saving more padding than that pays for a pass."""


class LM(Texts):
    """A causal language model with the tokenisation, batching and scoring that editing needs.

    The model stays in evaluation mode and its parameters never require gradients.

    Args:
        model: A decoder-only transformers model.
        tokenizer: Its fast tokenizer.
        name: Identifier for records: a Hub id, a folder or `pocket`.
        revision: Commit or tag on the Hub, if any.
        max_tokens: Budget of padded tokens per forward pass; default by device.
        sites: Overrides for the architecture probe (`{"ffn_out": "…{}…"}`).
        compute: What optimisations multiply in, inside `searching`; `auto`: bfloat16 if that pays.

    Attributes:
        compute: As above.
        arguments: Names of what the model takes, in order.
        takes_positions: Whether the model is told positions.
        cache_name: What the model calls its cached keys and values.
        installed: What stands around the model now, as those who installed it wrote it down.
        focus: In mixtures of experts: block → the expert that `site` means.
        spread: Whether the model lies on several devices, or some of its weights are offloaded.
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
        compute: Compute = "float32",
    ) -> None:
        expect(model, nn.Module, "the model", "a model of transformers", "Type: errata.load(NAME)")
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"the tokenizer of {name or 'this model'} has no character offsets",
                "Use a model with a tokenizer.json.",
            )
        self.model = keep_differentiable(model.eval().requires_grad_(False))
        self.tokenizer = tokenizer
        self.name = name or getattr(model, "name_or_path", "") or type(model).__name__
        self.revision = revision
        self._sites = dict(sites or {})
        self.compute: Compute = compute
        self.max_tokens = max_tokens or MAX_TOKENS.get(self.device.type, 32768)
        self.arguments = tuple(inspect.signature(model.forward).parameters)
        self.takes_positions = "position_ids" in self.arguments
        self.cache_name = cache_name(self.arguments)
        self.installed = installed_on(model)
        self.spread = is_spread(model)
        self.focus: Mapping[int, int] = {}
        self.rounded = False  # whether the edit under way was searched with rounded products
        self._probed = False
        self._once = Once(model, self.installed)

    def __repr__(self) -> str:
        # the probe is not run for the sake of a message: blocks as the configuration counts them
        blocks = getattr(self.model.config.get_text_config(), "num_hidden_layers", "?")
        count = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        dtype = str(self.dtype).removeprefix("torch.")
        what = f"{blocks} blocks · {count:.1f} M parameters · {dtype} · {self.device}"
        return f"<LM: {self.name} · {what}>"

    # ------------------------------------------------------------------ what is known of the model

    @property
    def device(self) -> torch.device:
        """Device that takes the token ids; what errata computes beside the model lies there."""
        return home_of(self.model)

    @property
    def embedding(self) -> Float[Tensor, "V d"]:
        """Weight of the token embedding."""
        return embedding_of(self.model)

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

    def probe(self) -> None:
        """Look for the spec now, if nobody has; whoever puts something around the model asks first.

        A model that is not understood may still run under patches: the error waits for `spec`.
        """
        self._probed, known = True, self._probed
        with suppress(SpecError):
            _ = known or self.spec

    def once(self, key: Hashable, make: Callable[[], T], owner: object | None = None) -> T:
        """Return what `make` gave when this key was first asked for, of the weights as they are.

        Args:
            key: Names the thing.
            make: Makes it.
            owner: Whose it is: it is kept as long as the owner lives; default: with the model.
        """
        return self._once(key, make, owner)

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
        known = self.model.get_input_embeddings().get_parameter("weight").shape[0]
        for value in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(value, int) and value < known:  # some tokenizers bring one of their own
                return value
        return 0

    @cached_property
    def backbone(self) -> Known | None:
        """Which published backbone this is, by its configuration or name; None if none of them."""
        return identify(self.name, self.model.config.get_text_config().to_dict())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all weights (tied ones once)."""
        from errata.model.weights import identity, settle

        settle(self)
        return identity(self).fingerprint

    def module(self, path: str) -> nn.Module:
        """Return the submodule of that dotted path."""
        return self.model.get_submodule(path)

    def site(self, layer: int, kind: str = "ffn_out") -> Site:
        """Return the projection of one block; in a mixture of experts that of the expert in focus.

        Args:
            layer: Block number from 0; negative counts from the end.
            kind: `ffn_out` or `attn_out`.

        Raises:
            ConfigError: If the model has no such block or kind.
        """
        return self.spec.site(layer, kind, self.focus, self.name)

    def check_finite(self) -> None:
        """Refuse a model that holds NaN or infinite weights; only what was written since is read.

        Raises:
            ModelError: Names the first such parameter.
        """
        from errata.model.weights import check_finite

        check_finite(self)

    # ------------------------------------------------------------------ rows to batches

    def batch(self, rows: Sequence[Row], index: Sequence[int]) -> Batch:
        """Right-pad the rows of the given numbers into one batch on the model's device."""
        return make_batch(rows, index, self.pad_id, self.device)

    def batches(self, rows: Sequence[Row], max_tokens: int | None = None) -> Iterator[Batch]:
        """Yield length-bucketed batches under the token budget, with little padding.

        Rows whose patches may not share a pass (some have a context, some have none) do not.

        Args:
            rows: The rows.
            max_tokens: Budget of padded tokens per batch.
        """
        stack, budget = self.installed.stack, max_tokens or self.max_tokens
        lanes = None if stack is None else stack.apart([row.patch for row in rows])
        for lane in sorted(set(lanes or [0])):
            members = [i for i in range(len(rows)) if lanes is None or lanes[i] == lane]
            members.sort(key=lambda i: len(rows[i].ids))
            for index in bucket(rows, budget, members, max_padding=self.pass_cost):
                yield self.batch(rows, index)

    # ------------------------------------------------------------------ forward passes

    def behind(self, cache: Any) -> dict[str, Any]:
        """Return the arguments of a forward pass that continues behind cached keys and values."""
        return {self.cache_name: cache, "use_cache": True}

    def run(self, batch: Batch, **kwargs: Any) -> Any:
        """Run the model on a batch, every row under its patch, and return its output object.

        No cache is made unless asked for.

        Raises:
            PatchError: If rows name patches and no stack is active, or one that it does not hold.
        """
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self.takes_positions:
            inputs["position_ids"] = batch.position_ids
        running = self.installed.running(batch=batch)
        with self._attention(), quick_products(self), self._under(batch), running:
            return self.model(**inputs, **{"use_cache": False, **kwargs})

    def _under(self, batch: Batch) -> AbstractContextManager[None]:
        """Route the active stack for one pass."""
        stack = self.installed.stack
        if stack is not None:
            return stack.routed(batch.patches or (-1,) * len(batch))
        named = max(batch.patches, default=-1)
        if named >= 0:
            raise PatchError(
                f"rows run under patch {named} of a stack, and no stack is active",
                "Ask inside `with errata.Stack(lm, patches):`.",
            )
        return nullcontext()

    def _attention(self) -> AbstractContextManager[Any]:
        """Avoid torch's fused attention where its backward pass is slow: in half precision on CPU.

        There it takes about ten times as long as the same in plain operations.
        """
        half = self.dtype in (torch.bfloat16, torch.float16)
        if half and self.device.type == "cpu" and torch.is_grad_enabled():
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()

    def searching(self) -> AbstractContextManager[None]:
        """Multiply as `compute` says inside a `with` block; for passes that an optimisation makes.

        Starting values, keys and scores are computed outside: they are what is kept.
        """
        if not self.roughly:
            return nullcontext()
        self.rounded = True
        return rounded_products(self)

    @property
    def roughly(self) -> bool:
        """Whether the passes of an optimisation multiply in bfloat16, and the model is float32."""
        return rounds(self, self.compute)

    def logits(self, batch: Batch, at: Int[Tensor, "N 2"], **kwargs: Any) -> Float[Tensor, "N V"]:
        """Return logits at (row, position) pairs only; never `rows x T x vocabulary`."""
        at = at.to(self.device)  # routers read it beside tensors of the model
        with gather_logits(self, at), self.installed.running(at=at):
            return self.run(batch, **kwargs).logits[0]

    # ------------------------------------------------------------------ questions

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
            rows: Rows with labels; `Row.patch` says under which patch of the active stack each
                runs, -1 (as rows are made): the base model.
            stack: The active stack, if rows are put under its patches here.
            groups: For each row, the number of its patch in the stack; -1 for the base model.
            max_tokens: Budget of padded tokens per forward pass.

        Returns:
            One score per row, in the order of `rows`, whatever the batching.
        """
        return score_rows(self, self._placed(rows, stack, groups), max_tokens)

    def top(
        self,
        prompts: Sequence[Prompt],
        k: int = 5,
        *,
        chat: Chat = "off",
        system: str | None = None,
        stack: Stack | None = None,
        groups: Sequence[int] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Return the `k` most probable next tokens of each prompt with their probabilities.

        Args:
            prompts: Texts, edits, probes or rows.
            k: How many tokens.
            chat: How texts are asked: `off`, `user` or `system+user`; edits and probes say it.
            system: Their system message.
            stack: As in `score`.
            groups: As in `score`.
        """
        return top_tokens(self, self._placed(self.rows(prompts, chat, system), stack, groups), k)

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int | Sequence[int] = 20,
        *,
        stops: Sequence[str] = (),
        chat: Chat = "off",
        system: str | None = None,
        stack: Stack | None = None,
        groups: Sequence[int] | None = None,
    ) -> list[str]:
        """Continue each prompt greedily and return the new text.

        Prompts are texts or rows; `stack` and `groups` are as in `score`. Rows end at the
        end-of-sequence token, in front of the first of `stops`, or at their own limit.
        """
        rows = self._placed(self.rows(prompts, chat, system), stack, groups)
        return continuations(self, rows, max_new_tokens, stops)

    def _placed(
        self, rows: Sequence[Row], stack: Stack | None, groups: Sequence[int] | None
    ) -> list[Row]:
        """Return rows, each under the patch that a caller of the public methods named for it."""
        if stack is not None and stack is not self.installed.stack:
            raise PatchError("this stack of patches is not active", "Ask inside `with stack:`.")
        if groups is None and stack is not None:
            groups = [0] * len(rows)
        return list(rows) if groups is None else patched(rows, groups)

    @property
    def prefix_cache_works(self) -> bool:
        """Whether rows may continue behind keys and values of their first tokens.

        Not while a change is active that has to see whole rows.
        """
        return not self.installed.around_model and self.prefix_cache_is_exact

    @cached_property
    def prefix_cache_is_exact(self) -> bool:
        """Whether a key/value cached prefix reproduces a full forward pass on this model.

        Established by running both on a few tokens once, so no list of architectures is needed.
        """
        return continues_exactly(self)
