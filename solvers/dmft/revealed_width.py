"""RevealedWidth: networks of finite width whose matrices are revealed as they are used: equal in law, at a cost linear in the width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.problem.problem import Problem
from meanfield.solution.solution import Solution
from solvers.dmft.causal_dmft import CausalDMFT
from solvers.running.failures import conclude
from solvers.running.memory import bound
from solvers.running.rehearsal import SECONDS, expected
from solvers.running.resuming import earlier
from solvers.running.solver import Estimate, settings


@checked
@dataclass(frozen=True)
class RevealedWidth:
    """Trains networks of one width, `RevealedWidth(10**5)(problem)`, as FiniteWidth does in law, not with its draws (equation 100).

    A matrix of n x n Gaussians is drawn only where training multiplies by it: time n K P a step and memory n K, K being the directions
    that features and gradients span, instead of n^2 P and n^2. Perceptrons and modules whose matrices are Gaussian, mean-field scalings.
    ValueError for problems that it cannot train.

    Example:
        >>> import meanfield as mf
        >>> from solvers import RevealedWidth
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 3))
        >>> RevealedWidth(width=4096)(problem).f.shape  # without a matrix of 4096 x 4096
        torch.Size([4, 4, 1])
    """

    width: int = 2**14
    """Neurons in each hidden layer; n of a module"""
    seed: int = 0
    """Of all random draws"""
    tolerance: float = 1e-3
    """The part of the fields (relative, root mean square) that may be dropped as already known (equation 28b)"""
    dtype: str = "float64"
    """Precision of all numbers"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, .."""
    snapshots: Sequence[int] = (0, -1)
    """Steps at which neurons and kernels are recorded; -1 is the last"""
    keep_neurons: bool = True
    """Record preactivations at snapshots"""
    keep_state: bool = False
    """Keep what resuming needs, all bases (an interrupted run keeps it anyway)"""
    progress: bool | None = None
    """Show a bar; in a terminal only if left out"""
    raise_on_failure: bool = True
    """Raise where a run fails; otherwise its solution is returned, with a status that says why"""

    def __post_init__(self) -> None:
        checks.normalise(self, width=2)

    def __call__(self, problem: Problem) -> Solution:
        return self.ensemble(problem, (self.seed,))[0]

    def ensemble(self, problem: Problem, seeds: int | Sequence[int] = 16) -> list[Solution]:
        """One solution per seed, one after the other; a number n means the seeds 0..n-1."""
        chosen = checks.seeds(seeds)
        self.check(problem)
        solutions = [self._own(replace(self, seed=seed)._sweep()._run(problem), seed) for seed in chosen]
        return conclude(solutions, self.raise_on_failure)

    def check(self, problem: Problem) -> None:
        """ValueError or MemoryError, before any work, for a problem that it cannot train."""
        if problem.training.optimiser == "gradient_flow":
            raise ValueError(
                f"RevealedWidth trains by gradient_descent: received {problem.training.optimiser!r}, which FiniteWidth takes too"
            )
        self._sweep().check(problem)

    def estimate(self, problem: Problem, seconds: float = SECONDS) -> Estimate:
        """Time and memory of a run, from its beginning, which is solved for so many `seconds`. ValueError or MemoryError as of the run."""
        self.check(problem)
        found, how, last = expected(self, problem, seconds)
        ranks = last.solution.stats["ranks"] if last.solution else ()
        most = max((max(pair) for pair in ranks), default=1)
        return Estimate(found, bound(self._sweep().parts(problem, most)), how)

    def resume(self, solution: Solution, steps: int) -> Solution:
        """The solution continued for `steps` more steps: the bits of an uninterrupted run on as many threads of the same device.

        ValueError for a solution without the state to go on from: it takes keep_state=True, or an interrupted run.
        """
        found = self._sweep()._run(earlier(self, solution, steps), solution)
        return conclude([self._own(found, self.seed)], self.raise_on_failure)[0]

    def _sweep(self) -> CausalDMFT:
        """The sweep that is the network in law"""
        names = ("seed", "tolerance", "dtype", "device", "snapshots", "keep_neurons", "keep_state", "progress")
        own = {name: getattr(self, name) for name in names}
        return CausalDMFT(self.width, **own, draws="finite", two_time=False, raise_on_failure=False)

    def _own(self, found: Solution, seed: int) -> Solution:
        return replace(found, solver=settings(replace(self, seed=seed)))
