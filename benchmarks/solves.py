"""The solves of MEMIT and AlphaEdit, and the null space, against what published code computes.

Nothing here needs a model: keys are drawn from a moment whose spectrum decays over five and a half
decades. Every way of solving is also compared with the published general solve in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks import _common as common

L2, WEIGHT, THRESHOLD = 10.0, 15_000.0, 2e-2
TOP = (1.5, 0.0)
"""Largest eigenvalues (powers of ten): two fifths and two thirds lie below the threshold."""


@dataclass
class Problem:
    """A moment, edits and earlier keys, all float64."""

    C: Any
    K: Any
    R: Any
    past: Any


def problem(args: Any, top: float) -> Problem:
    """Draw keys from a moment with a known spectrum."""
    import torch

    f, g = args.inputs, torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    basis, _ = torch.linalg.qr(normal(f, f))
    values = torch.logspace(top, top - 5.5, f, dtype=torch.float64)
    C, root = (basis * values) @ basis.T, basis * values.sqrt()
    keys = [normal(n, f) @ root.T for n in (args.edits, args.past)]
    return Problem((C + C.T) / 2, keys[0], normal(args.edits, args.outputs), keys[1])


def gap(found: Any, exact: Any) -> float:
    """Relative difference of two updates or projectors."""
    return float((found.double() - exact).norm() / exact.norm())


def update(factors: Any) -> Any:
    """`D` of its factors; made in every timed run, since published code makes it too."""
    B, A = factors
    return B.T @ A


def null_spaces(args: Any, p: Problem, name: str) -> tuple[list[common.Line], Any]:
    """Time the null space."""
    import torch

    from errata.locate.spectrum import null_space_of, spectrum

    single = p.C.float()

    def by_svd(C: Any) -> Any:
        U, s, _ = torch.linalg.svd(C, full_matrices=False)
        unused = U[:, s < THRESHOLD]
        return unused @ unused.T

    ways = {
        "eigh": lambda: null_space_of(*spectrum(p.C), THRESHOLD),
        "svd32": lambda: by_svd(single),
        "svd64": lambda: by_svd(p.C),
    }
    timings, results = common.interleaved(ways, args.repeats, args.device)
    basis, exact = results["eigh"], results["svd64"]
    ours, theirs = gap(basis.projector(), exact), gap(results["svd32"], exact)
    note = f"rank {basis.rank:,} of {basis.size:,}"
    lines = [
        common.line(
            "null space by eigh in float64", name, baseline, timings[way], timings["eigh"],
            args.device, note=note,
            equal=f"projector off float64's SVD by {ours:.0e}, float32's SVD is by {theirs:.0e}",
        )
        for way, baseline in (
            ("svd32", "SVD in float32 (as published)"), ("svd64", "SVD in float64")
        )
    ]  # fmt: skip
    return lines, basis


def alphaedit(args: Any, p: Problem, basis: Any, name: str) -> list[common.Line]:
    """Time AlphaEdit's solve: no earlier edits, some, and more than are kept one by one."""
    import torch

    from errata.locate import joint
    from errata.locate.joint import KeyMemory

    P64, lines = basis.projector(), []
    P32 = P64.float()
    S = p.past.T @ p.past
    cases = (
        ("no earlier edits", KeyMemory.empty(), torch.zeros_like(S), 8.0),
        (f"{args.past:,} earlier edits", KeyMemory.empty().add(p.past), S, None),
        ("earlier edits summed", KeyMemory(None, S, args.inputs), S, None),
    )
    for what, memory, gram, aim in cases:
        gram32 = gram.float()
        ways = {
            "ours": lambda m=memory: update(joint.null_space(p.R, p.K, basis, L2, m)),
            "published": lambda s=gram32: joint.null_space_as_published(p.R, p.K, P32, L2, s),
        }
        timings, results = common.interleaved(ways, args.repeats, args.device)
        exact = joint.null_space_as_published(p.R, p.K, P64, L2, gram)
        ours, theirs = gap(results["ours"], exact), gap(results["published"], exact)
        lines.append(
            common.line(
                f"AlphaEdit, {args.edits} edits, {what}", name,
                "general solve in float32 (as published)",
                timings["published"], timings["ours"], args.device, aim=aim,
                equal=f"off float64's general solve by {ours:.0e}, float32's is by {theirs:.0e}",
                note=f"null space of rank {basis.rank:,}",
            )
        )  # fmt: skip
    return lines


def memit(args: Any, p: Problem, name: str) -> list[common.Line]:
    """Time MEMIT's solve with a factor of the moment made once."""
    import torch

    from errata.locate import joint, solve
    from errata.locate.joint import KeyMemory

    factor, lines = solve.factor(p.C), []
    S = p.past.T @ p.past

    def general(gram: Any) -> Any:
        system = WEIGHT * p.C + p.K.T @ p.K
        if gram is not None:
            system += gram
        return p.R.T @ torch.linalg.solve(system, p.K.T).T

    for what, memory, gram in (
        ("no earlier edits", KeyMemory.empty(), None),
        (f"{args.past:,} earlier edits", KeyMemory.empty().add(p.past), S),
        ("earlier edits summed", KeyMemory(None, S, args.inputs), S),
    ):
        ways = {
            "ours": lambda m=memory: update(joint.least_squares(p.R, p.K, factor, WEIGHT, m)),
            "published": lambda s=gram: general(s),
        }
        timings, results = common.interleaved(ways, args.repeats, args.device)
        lines.append(
            common.line(
                f"MEMIT, {args.edits} edits, {what}", name, "LU in float64 (as published)",
                timings["published"], timings["ours"], args.device,
                equal=f"updates differ by {gap(results['ours'], results['published']):.0e}",
                note="factor of C given",
            )
        )  # fmt: skip
    return lines


def kept(args: Any, p: Problem, name: str) -> list[common.Line]:
    """Time what the cache folder saves, checksums included."""
    from errata.locate import solve, spectrum
    from errata.locate.moments import Moment

    lm = common.build_model(common.POCKET, args)
    moment = Moment(p.C.float(), 10 * args.inputs)
    wide = Moment(moment.matrix.double(), moment.tokens)
    spectrum.FACTOR_CACHED_FROM = 0
    spectrum.get_factor(lm, 0, moment, 1e-9)  # written here, read below
    spectrum.get_null_space(lm, 0, moment, THRESHOLD)
    ways = {
        "factor": lambda: solve.factor(wide.matrix, ridge=1e-9),
        "kept factor": lambda: spectrum.get_factor(lm, 0, moment, 1e-9),
        "spectrum": lambda: spectrum.null_space_of(*spectrum.spectrum(wide.matrix), THRESHOLD),
        "kept spectrum": lambda: spectrum.get_null_space(lm, 0, moment, THRESHOLD),
    }
    timings, results = common.interleaved(ways, args.repeats, args.device)
    assert (results["factor"].lower == results["kept factor"].lower).all()
    assert (results["spectrum"].basis == results["kept spectrum"].basis).all()
    return [
        common.line(
            f"{what} from the cache folder", name, baseline, timings[made], timings[read],
            args.device, equal="equal to the bit", note="checksum included",
        )
        for what, baseline, made, read in (
            ("Cholesky factor", "factoring in float64", "factor", "kept factor"),
            ("null space", "eigh in float64", "spectrum", "kept spectrum"),
        )
    ]  # fmt: skip


def main() -> None:
    from errata.locate.spectrum import null_space_of, spectrum

    args = common.options(__doc__, inputs=3072, outputs=768, edits=100, past=1000)
    if args.quick:
        args.inputs, args.outputs, args.edits, args.past = 512, 128, 30, 100
    name = f"{args.inputs:,} → {args.outputs}"
    few, many = (problem(args, top) for top in TOP)
    spaces, basis = null_spaces(args, few, name)
    lines = alphaedit(args, few, basis, name)
    wide = null_space_of(*spectrum(many.C), THRESHOLD)
    lines += [*alphaedit(args, many, wide, name), *memit(args, few, name)]
    lines += [*spaces, *kept(args, few, name)]
    common.finish("solves", args, lines)


if __name__ == "__main__":
    main()
