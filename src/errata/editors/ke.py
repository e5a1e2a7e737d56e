"""KnowledgeEditor: a text about the edit decides how the gradient is masked and shifted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from errata.case import Edit, how_asked
from errata.editors.base_trained import Matrices, TrainedConfig, TrainedEditor
from errata.model.lm import LM
from errata.model.spec import Site
from errata.model.tokens import patched
from errata.nets.capture import Signals
from errata.nets.update import FactorNetwork, Term, Update


class KeConfig(TrainedConfig):
    """Settings of KnowledgeEditor's networks; the defaults are those published."""

    matrices: Matrices = Field(
        default="all", description="out: the FFN's output matrix; all: its other matrices too"
    )
    lstm: int = Field(default=512, ge=1, description="Width of the LSTM in each direction")
    condition: int = Field(default=768, ge=1, description="Width of the encoded text")
    width: int = Field(default=512, ge=1, description="Hidden width of each matrix' network")
    max_scale: float = Field(
        default=1.0, gt=0, description="Largest factor of an update, before calibration"
    )


def condition_text(edit: Edit) -> str:
    """Return what the networks read: `before >> after || question`."""
    before = (edit.target_true or "").strip()
    return f"{before} >> {edit.target.strip()} || {edit.prompt}"


class Encoder(nn.Module):
    """One bidirectional LSTM over token embeddings, and a layer with tanh on its last states."""

    def __init__(self, d: int, hidden: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(d, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, width)

    def forward(self, texts: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, "E width"]:
        """Encode texts of different length; padding is not seen."""
        packed = pack_padded_sequence(
            pad_sequence(list(texts), batch_first=True),
            torch.tensor([len(text) for text in texts]),
            batch_first=True,
            enforce_sorted=False,
        )
        _, (last, _) = self.lstm(packed)
        return self.linear(torch.cat([last[0], last[1]], -1)).tanh()


class Conditioner(nn.Module):
    """Two matrices of rank one and a gate for one edited matrix, from the encoded text."""

    def __init__(self, condition: int, width: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.layers = nn.Sequential(
            weight_norm(nn.Linear(condition, width)),
            nn.Tanh(),
            weight_norm(nn.Linear(width, 2 * (d_in + d_out) + 1)),
        )

    def forward(
        self, encoded: Float[Tensor, "E condition"]
    ) -> tuple[
        tuple[Float[Tensor, "E d_out"], Float[Tensor, "E d_in"]],
        tuple[Float[Tensor, "E d_out"], Float[Tensor, "E d_in"]],
        Float[Tensor, "E 1"],
    ]:
        """Return rows and columns of `a` and of `b`, and the gate in (0, 1).

        Rows are probabilities over the outputs: `a = softmax(row)ᵀ column`.
        """
        col_a, row_a, col_b, row_b, s = self.layers(encoded).split(
            (self.d_in, self.d_out, self.d_in, self.d_out, 1), -1
        )
        return (row_a.softmax(-1), col_a), (row_b.softmax(-1), col_b), s.sigmoid()


class KeNetwork(FactorNetwork):
    """`W −= κ σ(s) (∇W ⊙ a + b)` with `a`, `b` of rank one.

    `∇W = Σ_t u_t h_tᵀ`, so `∇W ⊙ a` is the sum over tokens of `(u_t ⊙ row_a)(h_t ⊙ col_a)ᵀ` and an
    update has one factor more than the edit has tokens. The text is embedded by the language
    model's own matrix, which is neither trained nor stored with the networks.
    """

    kappa: Tensor

    def __init__(self, config: KeConfig, sites: Sequence[tuple[int, Site]], lm: LM) -> None:
        super().__init__()
        self.lm = lm
        self.encoder = Encoder(lm.embedding.shape[-1], config.lstm, config.condition)
        self.matrices = nn.ModuleList(
            Conditioner(config.condition, config.width, site.d_in, site.d_out) for _, site in sites
        )
        self.register_buffer("kappa", torch.full((len(sites),), float(config.max_scale)))

    def encode(self, edits: Sequence[Edit]) -> Float[Tensor, "E condition"]:
        """Return the encoded texts of edits."""
        texts = [condition_text(edit) for edit in edits]
        ids = self.lm.tokenizer(texts, add_special_tokens=False)["input_ids"]
        table, kind = self.lm.embedding, self.encoder.linear.weight.dtype
        return self.encoder([table[torch.tensor(row, device=table.device)].to(kind) for row in ids])

    def forward(self, signals: Signals, noise: Any = None) -> Update:
        """Return the update; each edit is conditioned on its own text."""
        encoded = self.encode(signals.edits)
        terms = []
        for number, (f, net) in enumerate(zip(signals.factors, self.matrices, strict=True)):
            (row_a, col_a), (row_b, col_b), gate = net(encoded)
            scale = (self.kappa[number] * gate)[:, None]
            keys = scale * torch.cat([f.h * col_a[:, None], col_b[:, None]], 1)
            values = torch.cat([f.u * row_a[:, None], row_b[:, None]], 1)
            mask = torch.cat([f.mask, f.mask.new_ones(len(f.mask), 1)], 1)
            terms.append(Term(keys, values, mask, signals.owner))
        return Update(tuple(terms), signals.groups)

    def edit_rates(self) -> list[nn.Parameter]:
        """Return nothing: how far an edit goes is up to the gates."""
        return []

    def calibrate(self, factors: Sequence[float]) -> None:
        """Multiply κ of each matrix."""
        self.kappa.mul_(self.kappa.new_tensor(list(factors)))


class Ke(TrainedEditor):
    """KnowledgeEditor: the gradient, masked and shifted by what a text about the edit says."""

    name: ClassVar[str] = "ke"
    title: ClassVar[str] = "KE"
    paper: ClassVar[str] = (
        "De Cao et al., Editing Factual Knowledge in Language Models, arXiv:2104.08164"
    )
    needs: ClassVar[tuple[str, ...]] = ("training",)
    weights: ClassVar[bool] = True
    batch: ClassVar[str] = "joint"
    sequence: ClassVar[str] = "adds"
    exports: ClassVar[tuple[str, ...]] = ("lora", "merged")
    Config: ClassVar[type[KeConfig]] = KeConfig
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gpt2-xl": {"layers": (45, 46, 47)},
        "gpt-j-6b": {"layers": (25, 26, 27)},
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-5, "calibrate": None, "sg_weight": 0.1, "kl": "original_first",
        "pocket": {"lr": 1e-3, "sg_weight": 1.0, "kl": "edited_first", "hops": "unknown"},
    }  # fmt: skip

    def automatic_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the last three blocks, as later comparisons do."""
        return tuple(range(max(0, lm.n_layers - 3), lm.n_layers))

    def rule_of(self, lm: LM) -> str:
        """Say which blocks these are."""
        return "rule: the last three blocks"

    def completed(
        self, lm: LM, edits: Sequence[Edit], patches: Sequence[int] | None = None
    ) -> list[Edit]:
        """Fill in what the model says before the edit, where the request does not say it.

        That is its greedy answer, of as many tokens as the new one.
        """
        plain = [Edit(edit.prompt, edit.target, **how_asked(edit)) for edit in edits]
        questions = list(zip(plain, patches or [-1] * len(edits), strict=True))
        unknown = [number for number, edit in enumerate(edits) if edit.target_true is None]
        different = list(dict.fromkeys(questions[number] for number in unknown))
        answers = lm.generate(
            patched(lm.rows(asked for asked, _ in different), [p for _, p in different]),
            [len(lm.row_of(asked).labels) for asked, _ in different],
        )
        said = dict(zip(different, answers, strict=True))
        filled = list(edits)
        for number in unknown:
            filled[number] = replace(edits[number], target_true=said[questions[number]])
        return filled

    def build(self, sites: Sequence[tuple[int, Site]], lm: LM) -> KeNetwork:
        """Return untrained networks for these matrices."""
        assert isinstance(self.config, KeConfig)
        return KeNetwork(self.config, sites, lm)
