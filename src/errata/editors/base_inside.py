"""What can be looked at inside a trained editor with latents and gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from errata.case import Edit
from errata.editors.base_trained import TrainedEditor
from errata.errors import ConfigError
from errata.model.lm import LM
from errata.nets.capture import Signals
from errata.nets.inside import Inside, only, smallest
from errata.patch import Patch


@dataclass(frozen=True)
class Gates:
    """Gates of one edit.

    Attributes:
        ids: Token ids of prompt and target, the target's last one included.
        prompt_length: Tokens of the prompt.
        by_matrix: By path of the matrix, a gate per token, `[T]`; NaN at tokens that are not
            written.
    """

    ids: tuple[int, ...]
    prompt_length: int
    by_matrix: dict[str, Float[Tensor, " T"]]


class InsideEditor(TrainedEditor):
    """A trained editor whose networks say what they hold (`inside`, see `errata.nets.inside`)."""

    @torch.no_grad()
    def latents(self, lm: LM, edits: Sequence[Edit]) -> dict[str, Float[Tensor, "E l_m d_m"]]:
        """Return the latents that each edited matrix makes of each edit, on the unedited model.

        Of the distribution that the bottleneck gives it is the mean μ, which editing uses; of
        networks without a bottleneck the latents themselves. Nothing is edited.

        ```python
        editor = errata.get_editor("ibke", model="pocket")
        editor.latents(lm, edits)["model.layers.3.mlp.down_proj"].shape  # [E, l_m, d_m]
        ```

        Args:
            lm: The model that the networks were trained on; the same afterwards.
            edits: E edits, each by itself.

        Returns:
            By path of the matrix, lowest block first, `[E, l_m, d_m]`: E edits, `l_m` latents of
            `d_m` numbers, float32 at least, on the model's device.

        Raises:
            ConfigError: If there are no trained networks.
            ModelError: If they belong to another model.
        """
        return {path: inside.latents for path, inside in self.insides(lm, edits).items()}

    @torch.no_grad()
    def insides(self, lm: LM, edits: Sequence[Edit]) -> dict[str, Inside]:
        """Return all that each edited matrix' network holds of each edit; see `latents`.

        Tokens are padded to the longest edit.
        """
        parts: list[tuple[list[int], list[Inside]]] = []
        for signals, members, insides in self._looked_into(lm, [[edit] for edit in edits]):
            first = _first_of_each(signals)
            parts.append((members, [_lines(inside, first) for inside in insides]))
        if not parts:
            return {}
        order = torch.tensor([number for members, _ in parts for number in members]).argsort()
        paths = [site.path for _, site in self.sites(lm)]
        return {
            path: _lines(_joined([own[n] for _, own in parts]), order.to(lm.device))
            for n, path in enumerate(paths)
        }

    @torch.no_grad()
    def gates(self, lm: LM, edits: Sequence[Edit]) -> list[Gates]:
        """Return the gates σ(f_Ws) of each edit by token and matrix, on the unedited model.

        Raises:
            ConfigError: If the networks were trained without gates.
        """
        found: dict[int, Gates] = {}
        paths = [site.path for _, site in self.sites(lm)]
        for signals, members, insides in self._looked_into(lm, [[edit] for edit in edits]):
            for line, number in zip(_first_of_each(signals).tolist(), members, strict=True):
                row = signals.rows[line]
                length = len(row.ids)
                by_matrix = {}
                for path, inside in zip(paths, insides, strict=True):
                    gates = self._gated(inside)[line, :length].clone()
                    gates[~inside.mask[line, :length]] = torch.nan
                    by_matrix[path] = gates
                found[number] = Gates(row.ids, row.prompt_length, by_matrix)
        return [found[number] for number in range(len(edits))]

    @torch.no_grad()
    def pruned(
        self, lm: LM, groups: Sequence[Sequence[Edit]], shares: Sequence[float]
    ) -> list[list[Patch]]:
        """Return patches in which the smallest gates are zero, from the unedited model.

        Gates of all tokens and matrices of a group are ranked together. The updates of several
        edits of a group are added up, as in training.

        Args:
            lm: The model.
            groups: Edits that belong together, for each group.
            shares: Shares of a group's gates that are set to zero, from 0 (none) to 1 (all: an
                empty patch).

        Returns:
            For each group, a patch per share.

        Raises:
            ConfigError: If the networks were trained without gates, or join their tokens
                (`rank`).
        """
        network = self.network(lm)
        if getattr(self.settings, "rank", None) is not None:
            raise ConfigError(
                "these networks join tokens to a fixed rank, which have no gate each",
                "Train networks without the setting rank.",
            )
        sites = [site for _, site in self.sites(lm)]
        found: dict[int, list[Patch]] = {}
        for signals, members, insides in self._looked_into(lm, groups):
            update = network(signals)
            gates = [self._gated(inside) for inside in insides]
            masks = [inside.mask for inside in insides]
            for line, number in enumerate(members):
                found[number] = []
                for share in shares:
                    kept = smallest(gates, masks, signals.owner == line, share)
                    changes = only(update, kept).changes(sites, line, self.settings.scale)
                    found[number].append(self.make_patch(lm, changes, groups[number]))
        return [found[number] for number in range(len(groups))]

    def _looked_into(
        self, lm: LM, groups: Sequence[Sequence[Edit]]
    ) -> Iterator[tuple[Signals, list[int], list[Inside]]]:
        network = self.network(lm)
        everyone = dict.fromkeys(range(len(groups)), -1)
        for signals, members in self._signals(lm, self.sites(lm), groups, everyone):
            yield signals, members, network.inside(signals)

    def _gated(self, inside: Inside) -> Float[Tensor, "E T"]:
        if inside.gates is None:
            raise ConfigError(
                f"these networks of {self.name} were trained without gates (scaling=false)",
                f"Train others: errata train {self.trained_as or self.name} --set scaling=true",
            )
        return inside.gates


def _first_of_each(signals: Signals) -> Tensor:
    """Return the line of each group's first edit; those behind it were added by the editor."""
    owner = signals.owner
    first = torch.ones_like(owner, dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    return first.nonzero()[:, 0]


def _lines(inside: Inside, lines: Tensor) -> Inside:
    return Inside(
        inside.seen[lines], inside.latents[lines],
        None if inside.variance is None else inside.variance[lines],
        None if inside.gates is None else inside.gates[lines],
        inside.mask[lines],
    )  # fmt: skip


def _joined(parts: Sequence[Inside]) -> Inside:
    """Join edits that were read apart, padded to the longest."""
    most = max(part.mask.shape[1] for part in parts)

    def together(tensors: Sequence[Tensor | None], padded: bool) -> Tensor | None:
        given = [tensor for tensor in tensors if tensor is not None]
        if len(given) < len(tensors):
            return None
        if padded:
            given = [torch.nn.functional.pad(t, (0, most - t.shape[1])) for t in given]
        return torch.cat(given)

    return Inside(
        torch.cat([part.seen for part in parts]),
        torch.cat([part.latents for part in parts]),
        together([part.variance for part in parts], False),
        together([part.gates for part in parts], True),
        torch.cat(
            [torch.nn.functional.pad(part.mask, (0, most - part.mask.shape[1])) for part in parts]
        ),
    )
