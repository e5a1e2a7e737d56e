"""GRACE's codebook at work: which tokens it answers for, and what stands for their outputs.

By default every token is its own query (`errata.editors.grace.codebook`). The released code is told
where a prompt ends and compares the input of that token alone, which is what `asks=prompt` does:
other tokens may lie in a ball without being touched, and whoever runs the model has to know where
its prompts end. `LM` does; elsewhere all tokens that are given count as the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.editors.grace.codebook import KIND, Codebook, Replacement, tensors_of
from errata.errors import PatchError
from errata.model.passes import Pass
from errata.patch import module_kind


def replaced_at(chosen: Int[Tensor, "B T"], replacement: Replacement) -> Int[Tensor, "B T"]:
    """Return for every token the key whose value stands for its output, -1: none.

    Args:
        chosen: The key that answers at each token, -1: none.
        replacement: `replace_last`: the token that asks. `replace_prompt`: all tokens before the
            first one that is answered (published: before the prompt's last). The first, because
            later ones must not rewrite what is in a cache.
    """
    if replacement == "replace_last":
        return chosen
    fires = chosen >= 0
    before = (fires.cumsum(1) == 0) & fires.any(1, keepdim=True)
    first = fires.int().argmax(1, keepdim=True)
    return torch.where(before, chosen.gather(1, first), -1)


def released_at(
    chosen: Int[Tensor, "B T"], last: Int[Tensor, " B"], replacement: Replacement
) -> Int[Tensor, "B T"]:
    """Return the same where only the token `last` of each row asks, as in the released code.

    Args:
        chosen: The key that answers at each token, -1: none.
        last: The prompt's last token.
        replacement: `replace_last`: that token. `replace_prompt`: all tokens before it.
    """
    places = torch.arange(chosen.shape[1], device=chosen.device)[None]
    answered = places == last[:, None]
    if replacement == "replace_prompt":
        answered = places < last[:, None]
    return torch.where(answered, chosen.gather(1, last[:, None]), -1)


@module_kind(KIND)
class Deferral(nn.Module):
    """A codebook at work behind a layer: answers inside its balls, else defers to the layer.

    Args:
        config: `version`, `replacement` and `asks`.
        tensors: `keys`, `values`, `radii` of [`Codebook`][errata.editors.grace.codebook.Codebook].

    Raises:
        PatchError: If they are of another version.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.replacement: Replacement = config.get("replacement", "replace_last")
        self.sees_pass = config.get("asks", "tokens") == "prompt"
        for name, tensor in zip(
            ("keys", "values", "radii"), tensors_of(config, tensors), strict=True
        ):
            self.register_buffer(name, tensor, persistent=False)

    follows_cache = True
    """Behind cached tokens the last new one asks, as in the released code's generation."""

    @property
    def book(self) -> Codebook:
        """The codebook without its labels."""
        keys, values, radii = (self.get_buffer(name) for name in ("keys", "values", "radii"))
        return Codebook(keys, values, radii, (), ())

    def forward(
        self,
        given: Float[Tensor, "*batch d_in"],
        output: Float[Tensor, "*batch d_out"],
        seen: Pass | None = None,
    ) -> Float[Tensor, "*batch d_out"]:
        """Return `output`, with values in place of the tokens that the codebook answers for.

        Args:
            given: What the layer is given.
            output: What it returned.
            seen: The pass, if prompts alone ask: where they end.

        Raises:
            PatchError: For `replace_prompt`, if rows come joined into one dimension.
        """
        book = self.book
        if self.replacement == "replace_prompt" and given.ndim < 3:
            raise PatchError(
                "replace_prompt has to tell rows apart, which this model joins at the layer",
                "Edit with --set replacement=replace_last.",
            )
        if seen is not None:
            at = self._of_prompts(book, given, seen)
        else:
            chosen = book.chosen(given)
            at = replaced_at(chosen.reshape(-1, chosen.shape[-1]), self.replacement)
        answered: Bool[Tensor, " t"] = (at >= 0).reshape(-1)
        if not bool(answered.any()):
            return output
        where = answered.nonzero()[:, 0]
        flat = output.reshape(-1, output.shape[-1])
        new = book.values[at.reshape(-1)[where]].to(flat.dtype)
        return flat.index_copy(0, where, new).reshape(output.shape)

    def _of_prompts(
        self, book: Codebook, given: Float[Tensor, "B T d_in"], seen: Pass
    ) -> Int[Tensor, "B T"]:
        """Ask for the last token of each prompt; of a pass behind a cache, for its last token."""
        last = seen.prompt_mask.cumsum(1).argmax(1)
        rows = torch.arange(len(given), device=given.device)
        chosen = torch.full(given.shape[:2], -1, device=given.device)
        chosen[rows, last] = book.chosen(given[rows, last])
        return released_at(chosen, last, self.replacement)
