"""The measurements about the scaling plane behind docs/accuracy.md. Each prints its table and asserts the claim."""

import math

import numpy as np

import meanfield as mf
from meanfield.scaling.scaling import NAMED, coinciding, default, ic_mean_field, sym_default
from solvers import FiniteWidth, WassersteinFlow
from solvers.studies.measured_exponents import measured_exponents
from solvers.studies.proxy_comparison import Proxy, five_limits, proxy_comparison
from solvers.two_layer.infinite_logits import InfiniteLogitsLimit, rescaled


def powers_of_the_width() -> None:
    """digits 3/8, P = 16, tanh, logistic, T = 4, N = 64..32768 (16 seeds, float32): measured powers of N beside the predicted ones"""
    print("| scaling | quantity | predicted | measured |\n|---|---|---|---|")
    data = mf.digits((3, 8), n_train=16, n_test=0)
    for name, make in NAMED.items():
        training = mf.Training(2.0 if "mean_field" in name else 0.3, 4)
        problem = mf.Problem(data, mf.Network(1, "tanh"), make(), training, "logistic")
        report = measured_exponents(problem, (64, 512, 4096, 32768), 16, FiniteWidth(dtype="float32"))
        for quantity, law in report.quantities.items():
            print(f"| {name} | {quantity} | {law.predicted:g} | {law.measured} |", flush=True)
        for quantity in ("f0", "kernel", "readouts"):
            assert abs(report[quantity].measured.slope - report[quantity].predicted) < 0.15


def one_network_at_the_reference_width() -> None:
    """digits 0/1, N = N* = 64, T = 20, logistic, depth 1 and 2: largest difference of f between the five scalings, and at N = 4 N*"""
    print("| depth | N = N* | N = 4 N* |\n|---|---|---|")
    for depth in (1, 2):
        apart = []
        for width in (64, 256):
            runs = []
            for s in coinciding(mf.mean_field(1.0), 64).values():
                problem = mf.Problem(mf.digits(), mf.Network(depth), s, mf.Training(0.5, 20), "logistic")
                runs.append(FiniteWidth(width, snapshots=())(problem).f)
            apart.append(max(float((f - runs[0]).abs().max()) for f in runs))
        print(f"| {depth} | {apart[0]} | {apart[1]:.2g} |")
        assert apart[0] == 0
        assert apart[1] > 0.1


def networks_approach_their_limits() -> None:
    """digits 3/8, P = 24, tanh, T = 8, relative error of f after step 0 (rms of 4 nets), limits with the nets' own f0, 2^12 particles"""
    print("| scaling | loss | N = 64 | 512 | 4096 | 32768 | slope |\n|---|---|---|---|---|---|---|")
    data, widths = mf.digits((3, 8), 24, 0), (64, 512, 4096, 32768)
    cases = (
        (mf.mean_field(1.0), "squared", 0.5),
        (ic_mean_field(1.0, 16), "squared", 0.5),
        (ic_mean_field(1.0, 16), "logistic", 2.0),
        (default(), "logistic", 1.0),
        (sym_default(), "logistic", 1.0),
        (sym_default(), "logistic", 10.0),
    )
    for scaling, loss, eta in cases:
        problem, errors = mf.Problem(data, mf.Network(1, "tanh"), scaling, mf.Training(eta, 8), loss), []
        for width in widths:
            nets = FiniteWidth(width, snapshots=(), dtype="float32").ensemble(problem, 4)
            apart = []
            for net in nets:
                if scaling.name in ("default", "sym_default"):
                    limit, net = InfiniteLogitsLimit(2**12, f0=net, snapshots=())(problem), rescaled(net)
                else:
                    f0 = net if scaling.frozen != "none" else None
                    limit = WassersteinFlow(2**12, f0=f0, snapshots=())(problem)
                apart.append(float((net.f - limit.f)[1:].square().sum() / limit.f[1:].square().sum()))
            errors.append(math.sqrt(np.mean(apart)))
        slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
        row = " | ".join(f"{e:.3g}" for e in errors)
        print(f"| {scaling.name}, eta = {eta:g} | {loss} | {row} | {slope:.2f} |", flush=True)
        assert slope < (-0.4 if "mean_field" in scaling.name else -0.1)


def best_proxy() -> None:
    """digits 0/1, P = 32, 32 test samples, tanh, logistic, N* = 64, T = 40, 256 nets, 64 runs of each limit: E_x KL(limit || net)"""
    data, wide = mf.digits((0, 1), 32, 32), FiniteWidth(1024, dtype="float32", snapshots=(), keep_neurons=False)
    proxies = five_limits() | {"mean_field, N = 1024": Proxy("mean_field", wide)}
    print(
        "| gamma0, eta | limit | step 1 | step 10 | step 20 | step 40 | distance at 40 |\n|---|---|---|---|---|---|---|"
    )
    for gamma0, eta in ((0.3, 0.5), (1.0, 0.5)):
        problem = mf.Problem(data, mf.Network(1, "tanh"), mf.mean_field(gamma0), mf.Training(eta, 40), "logistic")
        report = proxy_comparison(problem, 64, proxies, seeds=256, limit_seeds=64)
        for i, name in enumerate(report.names):
            cells = " | ".join(
                f"{report.kl[i, k]:.3g} [{report.low[i, k]:.2g}, {report.high[i, k]:.2g}]" for k in (1, 10, 20, 40)
            )
            print(f"| {gamma0}, {eta} | {name} | {cells} | {report.distance[i, 40]:.3f} |", flush=True)
        print(f"nearest: {report.nearest}; floor before its correction {report.floor[0]:.3f}")
        assert report.nearest in ("ic_mean_field", "ntk")


CLAIMS = {
    f.__name__: f
    for f in (one_network_at_the_reference_width, powers_of_the_width, networks_approach_their_limits, best_proxy)
}
