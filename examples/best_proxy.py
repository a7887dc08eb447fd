"""Which infinite-width limit stands best for a network of finite width?

All scalings train the same network at the reference width, so each limit is a proxy of that one network. The measure is Golikov's: the
KL divergence between Gaussian fits of the logits over seeds, averaged over test samples, per step; digits 0 and 1, logistic loss.
Expected: IC-MF nearest, NTK as near while the kernel has not moved; mean field knows no randomness, so its KL is infinite
(its wide network has a finite one); default and sym-default, whose logits are infinite, far off.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import meanfield as mf
from solvers import FiniteWidth
from solvers.studies.proxy_comparison import Proxy, five_limits, proxy_comparison

from . import folder, keep


def main(out: str | Path | None = None, quick: bool = False, gamma0: float = 1.0) -> dict[str, float]:
    """Compare the five limits, and a wide mean-field network; gamma0: richness at the reference width; quick: fewer seeds and steps."""
    width = 32 if quick else 64
    data = mf.digits((0, 1), n_train=16 if quick else 32, n_test=16 if quick else 32)
    training = mf.Training(learning_rate=0.5, steps=10 if quick else 40)
    problem = mf.Problem(data, mf.Network(1, "tanh"), mf.mean_field(gamma0), training, "logistic")
    wide = FiniteWidth(16 * width, dtype="float32", snapshots=(), keep_neurons=False)
    proxies = five_limits(2**8 if quick else 2**9) | {f"mean_field, N = {16 * width}": Proxy("mean_field", wide)}
    report = proxy_comparison(problem, width, proxies, seeds=60 if quick else 256, limit_seeds=16 if quick else 64)
    print(report)
    found = report.mean_kl()
    print("mean KL after step 0: " + ", ".join(f"{name} {kl:.3g}" for name, kl in found.items()))
    if out is not None:
        keep(mf.plot.proxy_comparison(report), folder(out) / "best_proxy.png")
    return found


if __name__ == "__main__":
    tyro.cli(main)
