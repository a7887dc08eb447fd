"""What a run keeps beside its state: outputs at every step, kernels at snapshots. Solvers refuse, before work, what cannot fit."""

from __future__ import annotations

from meanfield.problem.problem import Problem

Parts = dict[str, tuple[float, str]]  # what, with its bytes and what to change

INTEGRATOR = 15  # copies of the state in gradient flow: stages, errors and what is tried
_OBJECT = 1000.0  # bytes that Python and torch spend on one recorded tensor, as seen


def float32_of(size: int) -> str:
    """What to add to a list of remedies, where numbers have `size` bytes"""
    return "dtype='float32', " if size > 4 else ""


def kept(problem: Problem, snapshots: int, size: int, runs: int = 1, at_once: int = 1) -> Parts:
    """Outputs at every step and tangent kernels at the snapshots of each run, so many of them `at_once`; numbers of `size` bytes."""
    samples, outputs, points = problem.data.samples, problem.data.outputs, problem.data.points
    times = problem.training.record_count
    whose, fewer = (f" of {runs} seeds", "fewer seeds or steps") if runs > 1 else ("", "fewer steps")
    pairs = (samples * outputs) ** 2
    snapshots = snapshots if problem.gradients_recorded else 0
    tangents = (2 * runs * snapshots + 3) * pairs if snapshots else 0
    return {
        f"the record of the outputs at {times} steps{whose}": (
            float(times * ((runs + at_once) * points * outputs * size + _OBJECT)),
            f"take {fewer} (with a larger learning_rate), {float32_of(size)}a larger record_every, or fewer test samples",
        ),
        f"the {samples * outputs} x {samples * outputs} kernels at {snapshots} snapshots{whose}": (
            float(tangents * size),
            "give snapshots=() for none, or take fewer samples",
        ),
    }


def factors(problem: Problem, snapshots: int, neurons: float) -> float:
    """Bytes for Phi and G of one layer at all pairs of snapshots: Gram matrices of what is less, neurons or columns, as factors"""
    columns = (snapshots * problem.data.samples, snapshots * problem.data.samples * problem.data.outputs)
    return sum(3.0 * 8 * min(neurons, n) * n for n in columns)


def bound(parts: Parts) -> float:
    """Bytes of all parts and of the gaps between them: peaks were seen up to 9 % above the sum"""
    return 1.15 * sum(size for size, _ in parts.values())
