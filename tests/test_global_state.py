"""No global state changes a number or an outcome: torch's dtype, modes, precision and device, generators, warnings; all are left alone."""

import contextlib
import locale
import random
import threading
import warnings

import numpy as np
import pytest
import sympy  # noqa: F401  torch imports it late, which adds a filter of warnings
import torch

import meanfield as mf
import solvers
from meanfield.checking import own_numerics as own_numerics_module
from meanfield.checking.own_numerics import own_numerics
from meanfield.kernels.conv_kernels import conv_nngp_and_ntk
from meanfield.measures.particle_measure import SobolPoints
from meanfield.network.convolutional import ConvNetwork
from solvers import CausalDMFT, FiniteWidth, FixedPointDMFT, InfiniteLogitsLimit, TangentKernelLimit, WassersteinFlow
from solvers.finite.empirical_kernels import monte_carlo_kernels

INFINITE = float("inf")


@contextlib.contextmanager
def setting(change, value, back):
    before = back()
    change(value)
    try:
        yield
    finally:
        change(before)


def dtype(which):
    return lambda: setting(torch.set_default_dtype, which, torch.get_default_dtype)


@contextlib.contextmanager
def precision(which=None, switched=None):
    """Of float32 products: everywhere, or on CPUs alone by a switch of newer versions of torch; all as it was thereafter"""
    before = switches()
    if which:
        torch.set_float32_matmul_precision(which)
    if switched and before:
        torch.backends.mkldnn.matmul.fp32_precision = switched
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend, value in before.items():
            backend.fp32_precision = value


def switches():
    if not hasattr(torch.backends.mkldnn, "matmul"):
        return {}
    return {backend: backend.fp32_precision for backend in (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)}


def whole_precision():
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch does not tell it once a switch was used
        return "switched"


@contextlib.contextmanager
def other_seeds():
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(17)
    np.random.seed(17)  # noqa: NPY002
    random.seed(17)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


@contextlib.contextmanager
def all_warnings_shown():
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        yield


CHANGES = {
    "float16": dtype(torch.float16),
    "bfloat16": dtype(torch.bfloat16),
    "float32": dtype(torch.float32),
    "float64": dtype(torch.float64),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": lambda: setting(
        torch.use_deterministic_algorithms, True, torch.are_deterministic_algorithms_enabled
    ),
    "seeds": other_seeds,
    "warnings": all_warnings_shown,
    "errors": lambda: np.errstate(all="raise"),
    "locale": lambda: setting(
        lambda v: locale.setlocale(locale.LC_ALL, v), "C", lambda: locale.setlocale(locale.LC_ALL)
    ),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "medium": lambda: precision("medium"),
    "high": lambda: precision("high"),
    "bf16": lambda: precision(switched="bf16"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta": lambda: torch.device("meta"),
}
TOGETHER = (
    (
        "float16",
        "inference_mode",
        "deterministic",
        "seeds",
        "warnings",
        "locale",
        "anomaly",
        "medium",
        "autocast",
        "meta",
    ),
    ("bfloat16", "no_grad", "bf16", "errors"),
)


def state():
    """Everything above, as it stands"""
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        whole_precision(),
        switches(),
        torch.is_autocast_enabled("cpu"),
        torch.backends.cudnn.deterministic,
        [layer.fp32_precision for layer in own_numerics_module._LAYERS],
        torch.get_num_threads(),
        torch.is_anomaly_enabled(),
        torch.get_rng_state().tolist(),
        [str(part) for part in np.random.get_state()],  # noqa: NPY002
        random.getstate(),
        locale.setlocale(locale.LC_ALL),
        np.geterr(),
        tuple(map(str, warnings.filters)),
        torch.get_default_device(),
    )


def problem(depth=1, phi="tanh", scaling=None, optimiser="gradient_descent", loss="squared", bias=0.2):
    data = mf.digits((0, 1), n_train=4, n_test=2)
    network = mf.Network(depth, phi, bias_std=bias)
    return mf.Problem(data, network, scaling or mf.mean_field(), mf.Training(0.2, 3, optimiser), loss)


def numbers(solution):
    kernels = [kernel.at(-1) for kernel in solution.kernels.values()]
    tangent = [] if solution.tangent_kernels is None else [solution.tangent_kernels]
    return [solution.f, solution.f_test, solution.loss, *kernels, *tangent, *solution.state.values()]


def solved(solver, **asked):
    return lambda: numbers(solver(problem(**asked)))


def resumed(solver, **asked):
    def run():
        first = solver(problem(**asked))
        return numbers(solver.resume(first, 2))

    return run


def prediction(optimiser):
    found = solvers.lazy_prediction(problem(2, scaling=mf.ntk(), optimiser=optimiser), times=[0.0, 0.2, INFINITE])
    return [found.mean, found.mean_test, found.covariance]


def kernels(phi, depth=3):
    return mf.nngp_and_ntk(mf.Network(depth, phi, bias_std=0.1), mf.ntk(), [[1.1, 2.3], [0.7, 0.1]])


def own():
    squared = mf.loss("squared")
    phi = mf.Activation(
        "mine", lambda h: torch.maximum(h, 0.1 * h), lambda h: 0.1 + 0.9 * (h > 0).to(h.dtype), kinks=((0.0, 0.9),)
    )
    mine = mf.Loss("mine", squared.value, squared.delta, squared.check)
    return [*numbers(WassersteinFlow(64)(problem(phi=phi, loss=mine))), *kernels(phi, depth=1)]  # fmt: skip


def compared():
    nets = solvers.width_sweep(problem(), (8, 16), 3)
    report = mf.deviation(nets, [WassersteinFlow(64, seed=s)(problem()) for s in (0, 1)])
    return [torch.frombuffer(bytearray(report.table().encode()), dtype=torch.uint8)]


def carlo():
    found = monte_carlo_kernels(mf.Network(2, "tanh"), mf.ntk(), [[1.0, 2.0], [0.5, -1.0]], 8, 2)
    return [found.nngp, found.ntk, found.ntk_error]


def distance():
    clouds = mf.ParticleMeasure.sobol(32, 2), mf.ParticleMeasure.iid(32, 2)
    return [torch.tensor(mf.measure_distance(*clouds), dtype=torch.float64, device="cpu")]


def variance():
    found = solvers.predicted_variance(problem(phi="relu"), width=16, networks=40)
    return [found.train, found.test]


def expansion():
    asked, chosen = problem(2), dict(observed=("f",), progress=False)
    variance = solvers.predicted_variance(asked, 64, groups=1, **chosen)
    bias = solvers.predicted_bias(asked, 16, 2, **chosen)
    found = mf.ensemble_loss(CausalDMFT(64)(asked), variance, bias)
    terms = torch.tensor([found.n_variance, found.n_bias, found.n2_bias2], dtype=torch.float64, device="cpu")
    assert found.n_variance > 0
    of_norm = torch.tensor(variance.of(lambda values: values["f"].norm()), dtype=torch.float64, device="cpu")
    return [variance.covariances, bias.estimates, terms, of_norm]


NTK, LOGITS = mf.ntk(), mf.sym_default(4)
CALLS = {
    "flow": resumed(WassersteinFlow(64), phi="relu"),
    "flow, float32": solved(WassersteinFlow(64, dtype="float32")),
    "flow, iid": solved(WassersteinFlow(64, initial="iid")),
    "gradient flow": solved(WassersteinFlow(64), optimiser="gradient_flow"),
    "frozen part": solved(WassersteinFlow(64), scaling=mf.ic_mean_field(1.0, 16)),
    "dmft": resumed(CausalDMFT(samples=256, keep_state=True), depth=2),
    "dmft, float32": solved(CausalDMFT(samples=256, dtype="float32"), depth=2),
    "dmft, relu": solved(CausalDMFT(samples=256), depth=2, phi="relu", loss="logistic"),
    "dmft, gradient flow": solved(CausalDMFT(samples=256), depth=2, optimiser="gradient_flow"),
    "fixed point": solved(FixedPointDMFT(samples=128), depth=1, bias=0.0),
    "networks": resumed(FiniteWidth(16), depth=2),
    "networks, float32": solved(FiniteWidth(64, dtype="float32"), depth=2),
    "networks, gradient flow": solved(FiniteWidth(16, dtype="float32"), optimiser="gradient_flow"),
    "lazy": resumed(TangentKernelLimit(), depth=2, scaling=NTK),
    "lazy, logistic": solved(TangentKernelLimit(), depth=2, scaling=NTK, optimiser="gradient_flow", loss="logistic"),
    "infinite logits": resumed(InfiniteLogitsLimit(64), scaling=LOGITS, loss="logistic"),
    "prediction": lambda: prediction("gradient_descent"),
    "prediction, flow": lambda: prediction("gradient_flow"),
    "variance": variance,
    "expansion": expansion,
    "kernels, relu": lambda: kernels("relu"),
    "kernels, gelu": lambda: kernels("gelu"),
    "kernels, tanh": lambda: kernels("tanh"),
    "convolutions": lambda: conv_nngp_and_ntk(ConvNetwork(2), NTK, problem().data.x.reshape(4, 1, 8, 8)),
    "Monte Carlo": carlo,
    "own pieces": own,
    "comparison": compared,
    "distance": distance,
}  # fmt: skip


def differing(found, right):
    """Names the entries that are not equal bit for bit, NaN included"""

    def same(a, b):
        return a is b or (a.dtype == b.dtype and torch.equal(a.nan_to_num(-7), b.nan_to_num(-7)))

    return [i for i, pair in enumerate(zip(found, right, strict=True)) if not same(*pair)]


@pytest.mark.parametrize("call", CALLS)
def test_no_global_state_changes_a_number_and_none_is_changed(call):
    right = CALLS[call]()
    for names in TOGETHER:
        same_under(names, call, right)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_no_single_one_does_either(call):
    right = CALLS[call]()
    for name in CHANGES:
        same_under([name], call, right)


def same_under(names, call, right):
    plain = state()
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(CHANGES[name]())
        before = state()
        found = CALLS[call]()
        assert state() == before, names
    assert not differing(found, right), names
    assert state() == plain, names


def test_threads_side_by_side_keep_their_precision_and_the_last_returns_the_old_one():
    entered, left = threading.Event(), threading.Event()

    def first():
        with own_numerics():
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=first)
    with precision("medium"):
        thread.start()
        assert entered.wait(10)
        with own_numerics():
            left.set()
            thread.join()
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"


def test_convolutions_of_a_gpu_keep_their_digits_and_their_order():
    """Which torch's defaults do not: TF32, and sums in any order"""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, [layer.fp32_precision for layer in own_numerics_module._LAYERS]
    with own_numerics():
        assert cudnn.deterministic
        assert {layer.fp32_precision for layer in own_numerics_module._LAYERS} <= {"ieee"}
    assert before == (cudnn.deterministic, [layer.fp32_precision for layer in own_numerics_module._LAYERS])


def test_an_error_returns_what_was_set():
    with precision("medium"), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        before = state()
        with pytest.raises(ValueError, match="exceeds the 360 images"):
            mf.digits((0, 1), n_train=10**4)
        assert state() == before


def test_what_is_looked_at_later_is_made_in_full_precision():
    """Kernels from float32 particles, times, spectra: properties and methods of what a call returned"""

    def looked_at():
        solution = WassersteinFlow(64, dtype="float32", snapshots=(0, -1))(problem())
        spectrum = mf.spectrum(torch.eye(4, dtype=torch.float64), [1.0, 2.0, 3.0, 4.0])
        return lambda: [
            solution.kernels["Phi1"].at(0, -1),
            solution.kernels["G1"].factor,
            solution.tangent_kernel(),
            solution.times,
            solution.loss,
            solution.preactivations()[0],
            spectrum.eigenvalues,
        ]

    right = looked_at()()
    later = looked_at()
    with precision("medium"), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        found = later()
    assert not differing(found, right)


@pytest.mark.parametrize("solver", [WassersteinFlow(64), FiniteWidth(16), CausalDMFT(samples=128, keep_state=True)])
def test_what_was_made_in_inference_mode_serves_outside_and_the_other_way_round(solver):
    right = numbers(solver.resume(solver(problem()), 2))
    with torch.inference_mode():
        asked = problem()
        first = solver(asked)
    assert not differing(numbers(solver.resume(first, 2)), right)
    first = solver(asked)
    with torch.inference_mode():
        assert not differing(numbers(solver.resume(first, 2)), right)


def test_the_first_sobol_point_has_all_its_bits():
    """Points are multiples of 2^-30, and the first 2^k of them fill every interval of 2^-k once: the first in float32 has 24 bits"""
    for seed in range(8):
        u = SobolPoints(40, seed).draw(64, dtype=torch.float64)
        assert torch.equal(u * 2**30, (u * 2**30).round())
        assert (u >= 0).all()
        assert (u < 1).all()
        assert torch.equal((u * 64).floor().sort(0).values[:, 0], torch.arange(64, dtype=torch.float64))
    first = torch.stack([SobolPoints(40, seed).draw(1, dtype=torch.float64)[0] for seed in range(8)])
    assert bool((first != first.float().double()).any())


def test_variance_leaves_the_cloud_that_it_is_given_alone():
    cloud = mf.ParticleMeasure.iid(32, problem().network.inputs(problem().data.x).shape[1])
    solvers.predicted_variance(problem(), initial=cloud)
    assert not any(tensor.requires_grad for tensor in cloud.tensors)


def test_data_under_another_default_device_lie_on_the_cpu():
    with torch.device("meta"):
        made = [mf.Dataset([[1.0, 2.0]], [1.0]), mf.digits(), mf.gaussian_mixture(), mf.single_index_teacher()]
        plain = mf.gaussian_mixture()
    assert {tensor.device.type for data in made for tensor in (data.x, data.y)} == {"cpu"}
    assert plain == mf.gaussian_mixture()
