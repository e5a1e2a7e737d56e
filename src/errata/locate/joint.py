"""Closed-form updates of several edits at once: pure functions in float64, no model needed.

Notation as in `solve`: the edited projection is `W` (`d x f`), `C = E[k k^T]`. Edits are rows: `K`
(`u x f`) holds their keys, `R` (`u x d`) how far their values have to move. An update is returned
in factors `(B, A)`, `u x d` and `u x f`, with `D = B^T A`.

| function | minimises | published as |
|---|---|---|
| `least_squares` | `weight tr(D C D^T) + ||D K^T - R^T||^2 (+ ||D K_past^T||^2)` | MEMIT, PMET |
| `equality` | `tr(D C D^T)` subject to `D K^T = R^T` | EMMET |
| `null_space` | `l2 ||D||^2 + ||D K^T - R^T||^2 (+ ||D K_past^T||^2)`, `D = D P` | AlphaEdit |

Every system has two forms: primal, of the size of the keys (`f x f`), and dual, of the size of the
edits (`n x n`). The dual one rests on a factor of `C` that is made once per layer. Both give the
same solution; the smaller system is solved.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import EditError
from errata.locate.memory import KeyMemory
from errata.locate.solve import Factor, positive
from errata.locate.spectrum import NullSpace

log = logging.getLogger(__name__)

Form = Literal["auto", "primal", "dual"]

EQUALITY_TOLERANCE = 1e-6
"""How far the equalities of `equality` may be missed, relative to the largest residual."""

SAME_KEY = 0.999
"""Cosine in the metric of `C^{-1}` from which two keys are called the same in an error."""

SOFTEN = "Remove one of them, or allow for a compromise: set slack=0.1."


class RowsError(EditError):
    """Some edits cannot be solved for.

    Attributes:
        rows: Numbers of the rows to blame, from 0; without them the rest can be tried again.
    """

    def __init__(self, message: str, hint: str | None = None, *, rows: tuple[int, ...]) -> None:
        super().__init__(message, hint)
        self.rows = rows


# ---------------------------------------------------------------------- solvers


def least_squares(
    residual: Float[Tensor, "u d"],
    keys: Float[Tensor, "u f"],
    moment: Factor,
    weight: float,
    memory: KeyMemory | None = None,
    *,
    form: Form = "auto",
) -> tuple[Float[Tensor, "u d"], Float[Tensor, "u f"]]:
    """MEMIT's update: write all edits, weighed against the change of ordinary and past keys.

    `D = R^T K (weight C + S + K^T K)^{-1}` (Meng et al. 2023, eq. 14), or with all keys `K_all =
    [K_past; K]` in the dual form `[0; R]^T (weight I + K_all C^{-1} K_all^T)^{-1} K_all C^{-1}`.

    Args:
        residual: `R`, by how much each value has to move.
        keys: `K`.
        moment: Factor of `C`.
        weight: `lambda`: how many ordinary keys the moment stands for.
        memory: Past keys, for the sequential variants.
        form: Which system to solve; auto: the smaller one.

    Raises:
        EditError: If shapes do not fit, values are not finite or `weight` is not above zero.
    """
    residual, keys = _rows(residual, keys, moment.size, moment.lower)
    if not weight > 0:
        raise EditError(
            f"the weight of the second moment is {weight}; it has to be above 0",
            "Use EMMET for edits that have to hold exactly.",
        )
    past = memory or KeyMemory.empty()
    if _dual(form, past, len(keys), moment.size):
        every = _stacked(past, keys)
        half = moment.half_solve(every.T)  # f x n
        system = half.T @ half
        system.diagonal().add_(weight)
        chosen = _select(system, len(keys), "the system of the edits")
        back = torch.linalg.solve_triangular(moment.lower.T, half @ chosen, upper=True)
        return residual, back.T
    system = moment.matrix().mul_(weight).addmm_(keys.T, keys)
    past.check(moment.size)
    total = past.total()
    if total is not None:
        system += total.to(system)
    lower, _ = positive(system, "the system of the edits")
    return residual, torch.cholesky_solve(keys.T, lower).T


def equality(
    residual: Float[Tensor, "u d"],
    keys: Float[Tensor, "u f"],
    moment: Factor,
    *,
    weight: float = 1.0,
    slack: float = 0.0,
) -> tuple[Float[Tensor, "u d"], Float[Tensor, "u f"]]:
    """EMMET's update: all edits hold exactly, and ordinary keys move least in mean square.

    `D = R^T G^{-1} K C'^{-1}` with `C' = weight C` and `G = K C'^{-1} K^T + slack I` (Gupta et al.
    2024). With a slack above zero, as released, it is `least_squares` with the weight `weight
    slack`; with one edit and no slack it is R-ROME.

    Args:
        residual: `R`, by how much each value has to move.
        keys: `K`.
        moment: Factor of `C`.
        weight: `w`; without slack it cancels.
        slack: `mu`, how soft the equalities are.

    Raises:
        EditError: If shapes do not fit, values are not finite, or no update satisfies all edits:
            the same key with different targets, or more edits than `f`.
    """
    residual, keys = _rows(residual, keys, moment.size, moment.lower)
    if not (weight > 0 and slack >= 0):
        raise EditError(
            f"weight {weight} and slack {slack}: the weight has to be above 0, the slack not below"
        )
    half = moment.half_solve(keys.T)
    gram = half.T @ half / weight
    gram.diagonal().add_(slack)
    # Scaled to a unit diagonal, a pivot is the share of a key that is not in the span of others.
    scale = gram.diagonal().rsqrt()
    if not torch.isfinite(scale).all():
        bad = int((~torch.isfinite(scale)).nonzero()[0])
        raise RowsError(f"the key of edit {bad + 1} is zero; it cannot be edited", rows=(bad,))
    scaled = gram * scale[:, None] * scale
    try:
        lower, ridge = positive(scaled, "the system of the equalities")
    except EditError:
        raise EditError("these edits cannot all hold exactly", SOFTEN) from None
    white = torch.linalg.solve_triangular(moment.lower.T, half, upper=True).T / weight
    A = torch.cholesky_solve(white * scale[:, None], lower) * scale[:, None]
    if ridge and slack == 0:
        _check_equalities(residual, keys, A, scaled)
    return residual, A


def null_space(
    residual: Float[Tensor, "u d"],
    keys: Float[Tensor, "u f"],
    basis: NullSpace,
    l2: float,
    memory: KeyMemory | None = None,
    *,
    form: Form = "auto",
) -> tuple[Float[Tensor, "u d"], Float[Tensor, "u f"]]:
    """AlphaEdit's update: least squares within the null space `P` of the second moment.

    `D = R^T K P ((K^T K + S) P + l2 I)^{-1}` (Fang et al. 2025, eq. 13) as a symmetric positive
    definite system, in coordinates of the null space, or of all edits in the dual form.

    Args:
        residual: `R`, by how much each value has to move.
        keys: `K`.
        basis: Null space of the second moment; of rank 0 it leaves an update of zero.
        l2: Weight of `||D||^2`.
        memory: Keys of earlier edits.
        form: Which system to solve; auto: the smaller one.

    Raises:
        EditError: If shapes do not fit, values are not finite or `l2` is negative.
    """
    residual, keys = _rows(residual, keys, basis.size, basis.basis)
    if not l2 >= 0:
        raise EditError(f"l2 is {l2}; it must not be negative")
    if basis.rank == 0:
        log.warning("the null space has rank 0; the update is zero")
        return residual, torch.zeros_like(keys)
    past = memory or KeyMemory.empty()
    dual = _dual(form, past, len(keys), basis.rank)
    every = _stacked(past, keys) if past.gram is None else keys
    # in coordinates: rows of U0, or projected rows where only the complement of U0 is held
    inside = basis.project(every) if basis.complement else every @ basis.basis
    if dual:
        system = inside @ inside.T
        system.diagonal().add_(l2)
        found = _select(system, len(keys), "the system of the edits").T @ inside
    else:
        system = inside.T @ inside
        system.diagonal().add_(l2)
        U = basis.basis
        if past.gram is not None:
            past.check(basis.size)
            total = past.gram.to(system)
            if basis.complement:  # P S P from S U1 alone, and any weight where nothing lies
                used = total @ U
                used -= U @ (U.T @ used) / 2 + total.diagonal().mean() / 2 * U
                mixed = used @ U.T
                system += total - mixed - mixed.T
            else:
                system += U.T @ total @ U
        elif basis.complement:
            system += system.diagonal().mean() * U @ U.T
        lower, _ = positive(system, "the system of the edits")
        found = torch.cholesky_solve(inside[-len(keys) :].T, lower).T
    return residual, found if basis.complement else found @ basis.basis.T


def null_space_as_published(
    residual: Float[Tensor, "u d"],
    keys: Float[Tensor, "u f"],
    projector: Float[Tensor, "f f"],
    l2: float,
    gram: Float[Tensor, "f f"],
) -> Float[Tensor, "d f"]:
    """AlphaEdit's update as its released code solves it: a general system of size `f`.

    `X = (P (K^T K + S) + l2 I)^{-1} P K^T R`, `D = X^T`, in the projector's precision (float32 as
    released). For comparison only: `null_space` gives the same update faster and more accurately.
    """
    residual, keys, gram = (part.detach().to(projector) for part in (residual, keys, gram))
    system = projector @ (keys.T @ keys + gram)
    system.diagonal().add_(l2)
    return torch.linalg.solve(system, projector @ keys.T @ residual).T


# ---------------------------------------------------------------------- afterwards


def keep_largest(
    delta: Float[Tensor, "d f"], weight: Float[Tensor, "d f"], share: float = 0.4
) -> Float[Tensor, "d f"]:
    """RECT: keep the entries of an update that change a weight most in proportion, drop the rest.

    Gu et al. 2024: entries are ranked by `|D| / |W + 1e-8|`.

    Args:
        delta: The update.
        weight: The weight it is added to.
        share: Which share of the entries is kept, rounded to a whole number of entries.

    Raises:
        EditError: If shapes differ or `share` is not between 0 and 1.
    """
    if delta.shape != weight.shape:
        raise EditError(f"an update of {tuple(delta.shape)} does not fit {tuple(weight.shape)}")
    if not 0 < share <= 1:
        raise EditError(f"the share of entries to keep is {share}; it has to be in (0, 1]")
    relative = (delta.abs() / (weight.to(delta) + 1e-8).abs()).flatten()
    count = round(share * delta.numel())
    chosen = relative.nan_to_num(nan=0.0, posinf=float("inf")).topk(count, sorted=False).indices
    kept = torch.zeros_like(delta).flatten()
    kept[chosen] = delta.flatten()[chosen]
    return kept.view_as(delta)


def clip_singular(
    total: Float[Tensor, "d f"], weight0: Float[Tensor, "d f"]
) -> Float[Tensor, "d f"]:
    """PRUNE: damp the singular values of the total update above the largest one of the weight.

    Ma et al. 2024: `s > s_max(W0)` becomes `ln s - ln s_max + s_max`; others stay. The result is
    to be added to `W0` (the released code adds it to the edited weight).

    Args:
        total: Sum of all updates, edited minus unedited weight.
        weight0: The unedited weight.

    Returns:
        The damped total in float64; the total itself if nothing exceeds the limit.

    Raises:
        EditError: If shapes differ or the weight is zero.
    """
    if total.shape != weight0.shape:
        raise EditError(f"an update of {tuple(total.shape)} does not fit {tuple(weight0.shape)}")
    total = total.detach().to(torch.float64)
    limit = float(torch.linalg.matrix_norm(weight0.detach().to(torch.float64), 2))
    if not limit > 0:
        raise EditError("the unedited weight is zero; its singular values give no limit")
    U, s, Vh = torch.linalg.svd(total, full_matrices=False)
    large = int((s > limit).sum())
    if not large:
        return total
    top = s[:large]
    excess = top - (top.log() - torch.tensor(limit, dtype=s.dtype).log() + limit)
    return total - (U[:, :large] * excess) @ Vh[:large]


# ---------------------------------------------------------------------- parts


def _rows(residual: Tensor, keys: Tensor, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Bring residuals and keys to float64 and check that they are edits of this layer."""
    if keys.ndim != 2 or residual.ndim != 2 or len(keys) != len(residual):
        raise EditError(
            f"keys {tuple(keys.shape)} and residuals {tuple(residual.shape)} are not one row per "
            "edit"
        )
    if keys.shape[1] != size:
        raise EditError(
            f"keys of length {keys.shape[1]} do not fit a second moment of {size}",
            "The moment is of another layer or model.",
        )
    residual, keys = (part.detach().to(like) for part in (residual, keys))
    for name, part in (("key", keys), ("target value", residual)):
        bad = tuple((~torch.isfinite(part).all(-1)).nonzero().flatten().tolist())
        if bad:
            raise RowsError(f"the {name} of edit {bad[0] + 1} holds NaN or inf", rows=bad)
    return residual, keys


def _dual(form: Form, past: KeyMemory, count: int, size: int) -> bool:
    """Whether the system of the edits is solved, which needs all keys one by one."""
    if past.gram is not None:
        if form == "dual":
            raise EditError("only the sum of past keys is held; the dual form needs the keys")
        return False
    return form == "dual" or (form == "auto" and past.count + count < size)


def _stacked(past: KeyMemory, keys: Float[Tensor, "u f"]) -> Float[Tensor, "n f"]:
    """Return past keys and keys as rows."""
    if past.keys is None:
        return keys
    past.check(keys.shape[1])
    return torch.cat([past.keys.to(keys), keys])


def _select(system: Float[Tensor, "n n"], count: int, what: str) -> Float[Tensor, "n u"]:
    """Return the last `count` columns of the inverse, those of the edits with a residual."""
    n = len(system)
    unit = torch.zeros(n, count, dtype=system.dtype, device=system.device)
    unit[n - count :].diagonal().fill_(1)
    return torch.cholesky_solve(unit, positive(system, what)[0])


def _check_equalities(residual: Tensor, keys: Tensor, A: Tensor, scaled: Tensor) -> None:
    """Refuse an update that misses its equalities, naming the likeliest pair of edits."""
    missed = (keys @ A.T @ residual - residual).norm(dim=-1)
    if float(missed.max()) <= EQUALITY_TOLERANCE * float(residual.norm(dim=-1).max()):
        return
    count, size = keys.shape
    if count > size:
        raise EditError(f"{count} edits cannot all hold exactly in {size} inputs", SOFTEN)
    similar = scaled.abs().fill_diagonal_(0)
    i, j = sorted(divmod(int(similar.argmax()), count))
    if float(similar[i, j]) < SAME_KEY:
        raise EditError("no update satisfies all edits: keys are combinations of others", SOFTEN)
    raise RowsError(
        f"no update satisfies all edits: edits {i + 1} and {j + 1} seem to have the same key (the "
        "same subject and prompt) but different targets",
        SOFTEN,
        rows=(i, j),
    )
