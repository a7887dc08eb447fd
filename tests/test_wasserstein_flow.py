"""The flow of the measure against exact answers, invariances and orders of convergence."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import meanfield as mf
from meanfield.measures import reductions
from meanfield.scaling.scaling import sym_default
from solvers import DivergedError, InfiniteLogitsLimit, NonFiniteError, WassersteinFlow


def problem(activation="tanh", gamma0=1.0, steps=20, eta=0.2, p=4, d=3, loss="squared", **network):
    data = mf.single_index_teacher(p, 3, d, seed=1)
    training = mf.Training(eta, steps)
    return mf.Problem(data, mf.Network(1, activation, **network), mf.mean_field(gamma0), training, loss)


def two_outputs(steps=20):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 2, generator=g), torch.randn(3, 2, generator=g)
    return mf.Problem(mf.Dataset(x, y), mf.Network(1, "linear"), mf.mean_field(1.5), mf.Training(0.2, steps))


@pytest.mark.parametrize("outputs", [1, 2])
def test_linear_activation_follows_the_closed_system_of_second_moments(outputs):
    asked = two_outputs() if outputs == 2 else problem("linear", 1.5, d=2, p=3)
    x, y, c = asked.network.inputs(asked.data.x), asked.data.y, asked.data.outputs
    moments, f_exact = torch.eye(c + x.shape[1], dtype=torch.float64), []
    for _ in range(asked.training.steps + 1):
        f = x @ moments[c:, :c] / 1.5
        f_exact.append(f)
        v = (y - f).T @ x / len(x)  # (C, D)
        generator = torch.zeros_like(moments)
        generator[:c, c:], generator[c:, :c] = v, v.T
        step = torch.eye(len(moments), dtype=torch.float64) + 0.2 * 1.5 * generator
        moments = step @ moments @ step.T
    # two nodes a coordinate integrate second moments exactly
    solution = WassersteinFlow(2**6, initial="gauss_hermite")(asked)
    torch.testing.assert_close(solution.f, torch.stack(f_exact), rtol=1e-12, atol=1e-12)


def test_one_linear_sample_in_gradient_flow_solves_its_scalar_equation():
    """P = 1, linear: df/dt = 2 k sqrt(1 + (gamma0 f)^2 / k) (y - f), k = |x|^2 / D."""
    x, y, gamma0 = torch.tensor([[0.6, -1.1]]), torch.tensor([1.3]), 2.0
    asked = mf.Problem(
        mf.Dataset(x, y), mf.Network(1, "linear"), mf.mean_field(gamma0), mf.Training(0.1, 20, "gradient_flow")
    )
    k = float(x.square().sum() / 2)
    exact = solve_ivp(
        lambda t, f: 2 * k * np.sqrt(1 + (gamma0 * f) ** 2 / k) * (1.3 - f),
        (0, 2),
        [0.0],
        t_eval=0.1 * np.arange(21),
        rtol=1e-11,
        atol=1e-12,
    )
    solution = WassersteinFlow(9, initial="gauss_hermite")(asked)
    np.testing.assert_allclose(solution.f[:, 0, 0], exact.y[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["tanh", "erf", "softplus"])
def test_one_sample_reduces_to_two_dimensions(activation):
    """P = 1: only (a, h) matter, h <- h + c a phi'(h) |x|^2 / D; a plain loop over a Gauss-Hermite grid gives the same outputs."""
    gamma0, eta = 1.3, 0.3
    asked = problem(activation, gamma0, steps=15, eta=eta, p=1, d=5)
    asked = replace(asked, data=mf.Dataset(asked.data.x, asked.data.y))
    k = float(asked.data.x.square().sum() / 5)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    a, u = np.meshgrid(nodes, nodes, indexing="ij")
    m, h = np.outer(weights, weights) / weights.sum() ** 2, u * np.sqrt(k)
    act, expected = mf.activation(activation), []
    for _ in range(16):
        phi, slope = (fn(torch.from_numpy(h)).numpy() for fn in (act.phi, act.dphi))
        expected.append((m * a * phi).sum() / gamma0)
        force = eta * gamma0 * (float(asked.data.y) - expected[-1])
        a, h = a + force * phi, h + force * a * slope * k
    solution = WassersteinFlow(1600, initial="gauss_hermite")(asked)
    np.testing.assert_allclose(solution.f[:, 0, 0], expected, rtol=1e-10, atol=1e-12)


def test_descent_converges_to_gradient_flow_with_order_one():
    """Distance to the flow at time 2 against the step: the regressed slope is 1."""
    flow = WassersteinFlow(2**9, snapshots=())
    exact = flow(replace(problem(), training=mf.Training(2.0, 1, "gradient_flow"))).f[-1]
    steps = np.array([40, 80, 160, 320])
    errors = [float((flow(replace(problem(), training=mf.Training(2 / n, n))).f[-1] - exact).norm()) for n in steps]
    slope, intercept = np.polyfit(np.log(2 / steps), np.log(errors), 1)
    residual = np.log(errors) - slope * np.log(2 / steps) - intercept
    assert abs(slope - 1) < 0.03, (slope, errors)
    assert np.abs(residual).max() < 0.02


def test_relu_flow_conserves_a2_minus_w2_of_every_particle():
    """phi is homogeneous, so gradient flow conserves a_r^2 - |w_r|^2; gradient descent does not."""
    asked, drift = problem("relu", 2.0), {}
    for optimiser in ("gradient_flow", "gradient_descent"):
        solution = WassersteinFlow(32, rtol=1e-5)(replace(asked, training=mf.Training(0.2, 5, optimiser)))
        first, last = (solution.measure(t).a[:, 0] ** 2 - solution.measure(t).w.square().sum(1) for t in (0, -1))
        drift[optimiser] = float((last - first).abs().max())
    assert drift["gradient_flow"] < 1e-4 < 1e-3 < drift["gradient_descent"]


def test_splitting_particles_permuting_them_and_rotating_inputs_change_nothing():
    asked = problem("gelu", weight_std=1.2)
    cloud = mf.ParticleMeasure.iid(40, 3, seed=3)
    f = WassersteinFlow(initial=cloud)(asked).f
    g = torch.Generator().manual_seed(0)
    share = 0.8 * torch.rand(40, generator=g, dtype=torch.float64) + 0.1
    split = mf.ParticleMeasure(
        cloud.a.repeat(2, 1), cloud.w.repeat(2, 1), torch.cat([share * cloud.m, (1 - share) * cloud.m])
    )
    order = torch.randperm(40, generator=g)
    permuted = mf.ParticleMeasure(*(t[order] for t in cloud.tensors))
    for other in (split, permuted):
        torch.testing.assert_close(WassersteinFlow(initial=other)(asked).f, f, rtol=1e-12, atol=1e-13)
    q = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64)).Q
    data = mf.Dataset(asked.data.x @ q, asked.data.y, asked.data.x_test @ q, asked.data.y_test)
    turned = WassersteinFlow(initial=mf.ParticleMeasure(cloud.a, cloud.w @ q, cloud.m))(replace(asked, data=data))
    torch.testing.assert_close(turned.f, f, rtol=1e-12, atol=1e-13)


def test_mass_is_kept_and_the_risk_decreases_for_small_steps():
    solution = WassersteinFlow(512)(problem("tanh", eta=0.02, steps=50))
    assert float(solution.measure(-1).m.sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool((solution.loss.diff() < 0).all())


def test_balanced_cloud_starts_at_zero_and_gauss_hermite_too():
    for solver in (WassersteinFlow(512), WassersteinFlow(16**3, initial="gauss_hermite")):
        asked = problem() if solver.initial == "sobol" else problem(p=2, d=2)
        solution = solver(asked)
        assert float(solution.f[0].abs().max()) < 1e-14
        assert float(solution.f_test[0].abs().max()) < 1e-14
    assert float(WassersteinFlow(512, initial="iid")(problem()).f[0].abs().max()) > 1e-3


@pytest.mark.parametrize("activation", ["relu", "tanh", "linear"])
def test_balance_ends_where_features_vanish_and_where_they_overflow(activation):
    y = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    for size in (0.0, 1e-320):
        asked = mf.Problem(
            mf.Dataset(torch.full((2, 3), size, dtype=torch.float64), y),
            mf.Network(1, activation),
            training=mf.Training(steps=2),
        )
        solution = WassersteinFlow(256)(asked)  # f stays below 1e-300, the loss the mean of y^2 / 2
        assert torch.equal(solution.loss, torch.full((3,), 1.25, dtype=torch.float64))
    if activation != "tanh":
        x = torch.full((2, 3), 1e200, dtype=torch.float64)
        with pytest.raises(NonFiniteError, match="very first step"):
            WassersteinFlow(256)(replace(asked, data=mf.Dataset(x, y)))


def test_a_balanced_cloud_moves_its_readouts_as_little_as_possible():
    """Against numpy's pseudo-inverse of the weighted features: a - M^(-1/2) (M^(1/2) phi) pinv(..) of what f(0) sees."""
    asked = problem("erf", p=20)
    there, start = (WassersteinFlow(256, balanced=b).initial_measure(asked) for b in (True, False))
    x = np.concatenate([asked.data.x, asked.data.x_test])
    phi = asked.network.nonlinearity.phi(start.w @ asked.network.inputs(torch.from_numpy(x)).T).numpy() / 256**0.5
    readouts = start.a.numpy() / 256**0.5
    expected = (readouts - np.linalg.pinv(phi.T, rcond=1e-9) @ (phi.T @ readouts)) * 256**0.5
    np.testing.assert_allclose(there.a, expected, atol=1e-6)
    assert torch.equal(there.w, start.w)


def test_float32_is_refused_where_it_rounds_what_is_learned():
    """f is 1 / gamma0 times a sum that cancels but for gamma0 of its size: at 1e-6 it was off by 18 %, at 1e-4 by less than 1e-3."""
    base = problem("tanh", steps=10)
    for gamma0, refused in ((1e-6, True), (2e-4, False)):
        asked = replace(base, scaling=mf.mean_field(gamma0))
        if refused:
            with pytest.raises(ValueError, match=r"float32 would round f by .* of its size: take dtype='float64'"):
                WassersteinFlow(512, dtype="float32")(asked)
        else:
            single, double = (WassersteinFlow(512, dtype=dtype)(asked).f for dtype in ("float32", "float64"))
            assert float((single - double).norm() / double.norm()) < 1e-3


def test_few_particles_keep_their_readouts():
    """As many as points would all get a = 0, and be no sample of the initial measure."""
    asked = problem(p=20)
    points = 20 + len(asked.data.x_test)
    for particles, moved in ((4 * points - 1, False), (4 * points, True)):
        there, start = (WassersteinFlow(particles, balanced=b).initial_measure(asked) for b in (True, False))
        assert torch.equal(there.a, start.a) is not moved
        assert float(there.a.square().mean()) > 0.6


def test_kernels_are_made_when_they_are_looked_at(monkeypatch):
    """A default run passes over no pairs of samples."""
    calls = []
    real = reductions.gram

    def counted(*arguments, columns):
        calls.append(columns)
        return real(*arguments, columns=columns)

    monkeypatch.setattr(reductions, "gram", counted)
    solution = WassersteinFlow(256, balanced=False)(problem(p=10))
    assert not calls
    first = solution.tangent_kernel(0)
    assert calls == [10] * 4  # Phi and G at two snapshots
    assert solution.tangent_kernel(0) is not None
    solution.kernels["Phi1"].at(0)
    assert len(calls) == 4
    torch.testing.assert_close(
        first, WassersteinFlow(256, balanced=False)(problem(p=10)).tangent_kernel(0), rtol=0, atol=0
    )


@pytest.mark.parametrize("bias_std", [0.0, 0.7])
def test_small_gamma0_is_the_network_linearised_at_its_start(bias_std):
    """Against f <- f + eta K Delta / P with K from torch.func.jacrev; on a measure even in a the remainder falls like gamma0^2."""
    base = problem("tanh", steps=30, bias_std=bias_std, weight_std=1.1, d=2)
    x, y = base.network.inputs(base.data.x), base.data.y
    apart = []
    for gamma0 in (4e-2, 2e-2, 1e-3):
        solution = WassersteinFlow(6**4, initial="gauss_hermite")(replace(base, scaling=mf.mean_field(gamma0)))
        start = solution.measure(0)

        def network(a, w, b, m=start.m):
            return (1.1 * (m[:, None] * a * torch.tanh(w @ x.T)).sum(0) + bias_std * b).flatten()

        ja, jw, jb = torch.func.jacrev(network, (0, 1, 2))(start.a, start.w, torch.zeros(1, dtype=torch.float64))
        inverse = 1 / start.m[:, None]  # the flow's metric: every particle moves at its own pace, whatever its weight
        kernel = (
            torch.einsum("prc,qrc->pq", ja, ja * inverse) + torch.einsum("prc,qrc->pq", jw, jw * inverse) + jb @ jb.T
        )
        f = torch.zeros_like(y)
        for _ in range(30):
            f = f + 0.2 * kernel @ (y - f) / len(y)
        apart.append(float((solution.f[-1] - f).norm() / f.norm()))
        torch.testing.assert_close(solution.tangent_kernel(0), kernel, rtol=1e-10, atol=1e-12)
    assert apart[2] < 1e-5
    assert np.log2(apart[0] / apart[1]) == pytest.approx(2, abs=0.1)


def test_engines_agree_over_a_whole_run():
    runs = [WassersteinFlow(500, engine=engine)(problem("softplus")).f for engine in ("dense", "chunked")]
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("optimiser", ["gradient_descent", "gradient_flow"])
def test_resumed_run_equals_the_uninterrupted_one(optimiser):
    asked = replace(problem(bias_std=0.5), training=mf.Training(0.2, 12, optimiser))
    solver = WassersteinFlow(64)
    first = solver(asked.with_steps(5))
    assert solver.resume(first, 7) == solver(asked)


@pytest.mark.parametrize("engine", ["dense", "chunked"])
@pytest.mark.parametrize("optimiser", ["gradient_descent", "gradient_flow"])
def test_no_velocity_is_computed_that_nobody_asks_for(monkeypatch, optimiser, engine):
    """Few pairs: a step, or a stage of the flow, and the outputs before it are one pass; none is for the last record."""
    calls = counted(monkeypatch)
    asked = problem(steps=5, d=130)
    asked = replace(asked, training=replace(asked.training, optimiser=optimiser))
    WassersteinFlow(64, initial="iid", engine=engine)(asked)
    passes = calls.pop("step")
    assert calls == {"outputs": 1, "velocity": 0}
    assert passes == 5 if optimiser == "gradient_descent" else passes > 5


def test_infinite_logits_ask_for_no_velocity_in_vain(monkeypatch):
    """f0 is given at step 0, whose velocity is alone; steps 1 to 4 are one pass each."""
    calls, data = counted(monkeypatch), mf.digits((3, 8), 12, 4)
    data = replace(data, x=data.x.repeat(1, 2), x_test=data.x_test.repeat(1, 2), transformation=None)  # D = 128
    asked = mf.Problem(data, mf.Network(1, "tanh"), sym_default(4), mf.Training(1.0, 5), "logistic")
    InfiniteLogitsLimit(64, initial="iid", engine="chunked")(asked)
    assert calls == {"step": 4, "outputs": 1, "velocity": 1}


def counted(monkeypatch):
    """How often each sum over particles and data is called from here on, by name"""
    calls = dict.fromkeys(("outputs", "velocity", "step"), 0)

    def counting(name, original):
        def count(*given):
            calls[name] += 1
            return original(*given)

        return count

    for name in calls:
        monkeypatch.setattr(reductions, name, counting(name, getattr(reductions, name)))
    return calls


def test_resuming_with_other_settings_or_unrecorded_snapshots_is_refused():
    solution = WassersteinFlow(64)(problem(steps=4))
    with pytest.raises(ValueError, match="other settings: particles=64"):
        WassersteinFlow(32).resume(solution, 2)
    with pytest.raises(ValueError, match="snapshot 2 lies in the past"):
        WassersteinFlow(64, snapshots=(0, 2, -1)).resume(solution, 2)


def test_a_run_that_blows_up_says_when_and_what_to_do_and_keeps_what_was_computed():
    asked = problem("relu", eta=50.0, steps=200)
    with pytest.raises(
        DivergedError, match=r"lower learning_rate.* at step \d+ of 200 with learning_rate=50"
    ) as caught:
        WassersteinFlow(64)(asked)
    partial = caught.value.solution
    assert partial is not None
    assert partial.status is mf.Status.DIVERGED
    assert 0 < partial.steps < 200
    assert bool(torch.isfinite(partial.f).all())
    quiet = WassersteinFlow(64, raise_on_failure=False)(asked)
    assert quiet == partial
    with pytest.raises(ValueError, match="blew up cannot be resumed"):
        WassersteinFlow(64).resume(partial, 10)


@pytest.mark.parametrize(
    ("inputs", "activation", "message"),
    [
        (13, "tanh", r"received 16384 particles for 14 dimensions .*, 2 a dimension; take initial='sobol'$"),
        (
            14,
            "linear",
            r"received 16384 particles for 15 dimensions .*, 1 a dimension; .*, or at least 2\^15 = 32768 particles",
        ),
        (9, "tanh", r"needs 3 nodes a dimension at least: .* 10 dimensions .*, or at least 3\^10 = 59049 particles"),
    ],
)
def test_a_quadrature_of_too_few_nodes_is_refused_before_any_work(inputs, activation, message, monkeypatch):
    """One node is one particle at the origin, two are all of one size."""
    asked = mf.Problem(mf.single_index_teacher(20, 0, inputs), mf.Network(1, activation), training=mf.Training(0.1, 2))
    monkeypatch.setattr(mf.ParticleMeasure, "gauss_hermite", lambda *_: pytest.fail("a cloud was made"))
    with pytest.raises(ValueError, match=message):
        WassersteinFlow(2**14, initial="gauss_hermite")(asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seed=2**32), "seed must be below 2\\^32, .*: received 4294967296"),
        (dict(particles=0), "particles must be at least 1"),
        (dict(particles=-4), "particles must be at least 1"),
        (dict(initial="normal"), "unknown initial measure: received 'normal'; known: gauss_hermite, iid, sobol"),
        (dict(engine="gpu"), "unknown engine"),
        (dict(dtype="float16"), "unknown dtype: received 'float16'; known: float32, float64"),
        (dict(device="tpu"), "unknown device"),
        (dict(rtol=0.0), "rtol must be positive"),
        (dict(seed=-1), "seed must be at least 0"),
    ],
)
def test_bad_settings_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        WassersteinFlow(**change)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_an_absent_device_is_named():
    with pytest.raises(ValueError, match="'cuda' is absent on this machine: present are cpu"):
        WassersteinFlow(device="cuda")


def test_problems_without_such_a_limit_are_refused_before_work():
    deep = replace(problem(), network=mf.Network(depth=2))
    with pytest.raises(ValueError, match="depth 1: received depth 2; CausalDMFT"):
        WassersteinFlow()(deep)
    with pytest.raises(ValueError, match=r"no limit as a flow of measures: take mean_field\(gamma0\)"):
        WassersteinFlow()(replace(problem(), scaling=mf.ntk()))
    with pytest.raises(ValueError, match=r"snapshots must lie in 0..20"):
        WassersteinFlow(snapshots=(0, 30))(problem())
    with pytest.raises(ValueError, match=r"must have \(outputs, inputs\) = \(1, 3\): received \(1, 5\)"):
        WassersteinFlow(initial=mf.ParticleMeasure.iid(8, 5))(problem())


def test_what_cannot_fit_in_memory_is_refused_with_the_bytes():
    with pytest.raises(MemoryError, match=r"GB \(\d+ bytes\).*take fewer particles"):
        WassersteinFlow(10**13)(problem())


@pytest.mark.cuda
def test_cuda_gives_the_numbers_of_the_cpu():
    runs = [WassersteinFlow(2**12, device=device)(problem("gelu", bias_std=0.3)).f for device in ("cpu", "cuda")]
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-11)
