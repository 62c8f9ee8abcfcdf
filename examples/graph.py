"""A molecule on its bond graph, coarsened by a scipy.sparse matrix: atoms, then beads, then repeat units.

The molecule is an oligomer of styrene: in each unit two backbone carbons and a ring of six. Positions follow the
Gaussian (Rouse) model, in which every bond is a spring, so that the mean square length of any bond is known exactly:
its resistance in the network of bonds, 1 on the backbone and 5/6 in a ring.

    python examples/graph.py
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from sampling import draw_gaussian

import ssdcore as ssd

UNITS, PER_UNIT, STEPS = 12, 8, 40
ATOMS = UNITS * PER_UNIT
NOISE = ssd.NoiseSchedule.linear(1000)
CHANGES = (600, 850)  # times at which atoms become beads, and beads units


def bonds() -> tuple[np.ndarray, np.ndarray]:
    """(pairs of bonded atoms (m, 2), whether each bond is in a ring): atoms 0 and 1 of a unit are its backbone."""
    pairs, in_ring = [], []
    for unit in range(UNITS):
        first = unit * PER_UNIT
        ring = range(first + 2, first + PER_UNIT)
        chain = [(first, first + 1), (first + 1, first + 2)]
        if unit + 1 < UNITS:
            chain.append((first + 1, first + PER_UNIT))
        closed = [(a, a + 1) for a in ring[:-1]] + [(ring[-1], ring[0])]
        pairs += chain + closed
        in_ring += [False] * len(chain) + [True] * len(closed)
    return np.array(pairs), np.array(in_ring)


def averaging(groups: np.ndarray, weights: np.ndarray) -> tuple[sp.csr_array, np.ndarray]:
    """(sparse matrix that takes the weighted mean of each group, weight of each group)."""
    size = np.bincount(groups, weights)
    entries = (weights / size[groups], (groups, np.arange(len(groups))))
    return sp.csr_array(entries, shape=(len(size), len(groups))), size


def coarsening() -> tuple[ssd.Matrix, ssd.Matrix]:
    """The operators atoms → beads (a backbone pair or a ring each) and beads → units (mean over its atoms)."""
    atom = np.arange(ATOMS)
    to_beads, atoms_in_bead = averaging(2 * (atom // PER_UNIT) + (atom % PER_UNIT >= 2), np.ones(ATOMS))
    to_units, _ = averaging(np.arange(2 * UNITS) // 2, atoms_in_bead)
    return ssd.Matrix(to_beads), ssd.Matrix(to_units)


def process(kappa: tuple[float, float] | None = None) -> ssd.LinearDiffusion:
    """The diffusion whose state is coarsened at CHANGES.

    kappa   factors on the noise-to-signal ratio at the two changes; None: the operators' norms (scale-matched noise),
            the least that is always admissible
    """
    operators = coarsening()
    ops: list[ssd.LinearOperator | None] = [None] * NOISE.steps
    factors = np.ones(NOISE.steps + 1)
    for change, op, factor in zip(CHANGES, operators, kappa or [op.norm() for op in operators]):
        ops[change - 1] = op
        factors[change:] *= factor
    return ssd.LinearDiffusion.from_operators(ops, NOISE.scaled(factors))


def covariance() -> np.ndarray:
    """(ATOMS, ATOMS) covariance of one coordinate, per kT/k: the pseudo-inverse of the graph Laplacian."""
    i, j = bonds()[0].T
    adjacency = sp.coo_array((np.ones(len(i)), (i, j)), shape=(ATOMS, ATOMS))
    return np.linalg.pinv(sp.csgraph.laplacian(adjacency + adjacency.T).toarray(), hermitian=True)


def mean_squares(second_moment: np.ndarray) -> dict[str, float]:
    """Of bond lengths (one coordinate) and of the distance to the centre (three), from E[x xᵀ] of a coordinate."""
    pairs, in_ring = bonds()
    i, j = pairs.T
    square = second_moment[i, i] + second_moment[j, j] - 2 * second_moment[i, j]
    return {
        "backbone bond": float(square[~in_ring].mean()),
        "ring bond": float(square[in_ring].mean()),
        "radius of gyration": float(3 * (np.trace(second_moment) - second_moment.mean() * ATOMS) / ATOMS),
    }


def main(n: int = 1000, steps: int = STEPS, seed: int = 0) -> dict[str, dict[str, float]]:
    """Check the operators and the process, generate, compare; the mean squares that are printed."""
    for op in coarsening():
        report = ssd.testing.check_operator(op, dtypes=["float64"])
        print(f"{op}: norm {op.norm():.4f}, {len(report.rows)} checks passed")
    proc = process()
    times = ssd.oracle.spread_times(NOISE, steps, "log_snr", CHANGES)
    chain = proc.respace(times)
    report = ssd.testing.check_process(chain, dtypes=["float64"])
    print(f"nodes {' -> '.join(str(size) for (size,) in proc.shapes)}; {len(report.rows)} checks of the process passed")
    try:
        process(kappa=(0.5, 0.5**0.5))  # the square root of the share of nodes kept: right for equal groups only
    except ssd.InadmissibleProcess as error:
        print(f"noise that falls with the number of nodes is refused: {error}")

    data = covariance()
    scale = np.sqrt(np.trace(data) / ATOMS)  # the process works on positions in units of their standard deviation
    positions = scale * draw_gaussian(chain, data / scale**2, (n, 3), seed)
    law = ssd.oracle.sampler_law(proc, data / scale**2, times, eta=0, order=2)
    figures = {
        "exact": {"backbone bond": 1.0, "ring bond": 5 / 6, "radius of gyration": 3 * scale**2},
        "samples": mean_squares(np.einsum("nci,ncj->ij", positions, positions) / (3 * n)),
        "law of the sampler": mean_squares(scale**2 * law.covariance.as_matrix()),
        "white noise": mean_squares(scale**2 * np.eye(ATOMS)),
    }
    print(f"mean squares, {n} molecules in {steps} steps:")
    print(f"  {'':18}" + "".join(f"  {name:>18}" for name in figures))
    for name in figures["exact"]:
        print(f"  {name:18}" + "".join(f"  {column[name]:18.3f}" for column in figures.values()))
    return figures


if __name__ == "__main__":
    main()
