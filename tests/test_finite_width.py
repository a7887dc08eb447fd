"""Batched finite networks against plainly written ones, and their bookkeeping."""

import pickle
from dataclasses import replace

import pytest
import torch

import meanfield as mf
from meanfield.checking import checks
from solvers import DivergedError, FiniteWidth
from solvers.finite import finite_width


def problem(depth=2, classes=(0, 1), steps=6, loss="squared", **network):
    data = mf.digits(classes, n_train=7, n_test=3)
    options = dict(activation="gelu", weight_std=1.2, bias_std=0.4) | network
    return mf.Problem(data, mf.Network(depth, **options), mf.mean_field(0.8), mf.Training(0.3, steps), loss)


def plain_network(asked, solution, width):
    """f(x) as written in equation 1, from the solution's initial parameters; independent of the batched code."""
    net, scale = asked.network, asked.scaling.output_multiplier(width)

    def f(p, x):
        h = net.weight_std * x @ p["W0"].T / x.shape[1] ** 0.5 + net.bias_std * p["b0"][:, 0]
        for l in range(1, net.depth):
            new = (
                net.weight_std * torch.nn.functional.gelu(h) @ p[f"W{l}"].T / width**0.5
                + net.bias_std * p[f"b{l}"][:, 0]
            )
            h = new if net.residual is None else h + net.residual / net.depth**0.5 * new
        return scale * (net.weight_std * torch.nn.functional.gelu(h) @ p["a"] + width**0.5 * net.bias_std * p["b"])

    return f


@pytest.mark.parametrize("residual", [None, 0.7])
def test_training_equals_a_plain_loop_of_gradient_descent(residual):
    asked, width = problem(3, residual=residual), 11
    start = FiniteWidth(width, seed=5)(asked.with_steps(0))
    f = plain_network(asked, start, width)
    p = {k: v.clone().requires_grad_() for k, v in start.state.items()}
    outputs = []
    while True:
        out = f(p, asked.data.x)
        outputs.append(torch.cat([out, f(p, asked.data.x_test)]).detach())
        if len(outputs) > asked.training.steps:
            break
        loss = 0.5 * (out - asked.data.y).square().sum() / 7
        grads = torch.autograd.grad(loss, list(p.values()))
        rate = 0.3 * 0.8**2 * width
        p = {k: (v - rate * g).detach().requires_grad_() for (k, v), g in zip(p.items(), grads, strict=True)}
    solution = FiniteWidth(width, seed=5)(asked)
    torch.testing.assert_close(
        torch.cat([solution.f, solution.f_test], 1), torch.stack(outputs), rtol=1e-11, atol=1e-12
    )
    for name, value in p.items():
        torch.testing.assert_close(solution.state[name], value.detach(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "scaling", [mf.mean_field(0.8), mf.ntk(), mf.Scaling(-0.7, 0.3, 0.6, sigma=2.0, eta_a=0.5, eta_w=3.0)]
)
def test_tangent_kernel_is_the_gram_matrix_of_all_gradients_times_learning_rates(scaling):
    asked, width = replace(problem(3, (0, 1, 2), steps=2, residual=0.5), scaling=scaling), 9
    solution = FiniteWidth(width)(asked)
    f = plain_network(asked, solution, width)
    jacobian = torch.func.jacrev(lambda p: f(p, asked.data.x))(dict(solution.state))
    rate_a, rate_w = scaling.learning_rate_multipliers(width)
    kernel = sum(
        (rate_a if name in ("a", "b") else rate_w) * torch.einsum("pci,qdi->pcqd", j.flatten(2), j.flatten(2))
        for name, j in jacobian.items()
    )
    torch.testing.assert_close(solution.tangent_kernel(-1), kernel, rtol=1e-10, atol=1e-12)


def test_kernels_are_averages_over_neurons_of_features_and_output_gradients():
    asked, width = (
        problem(2, (0, 1, 2), steps=3),
        40,
    )  # more columns than neurons and fewer: both ways of keeping a kernel
    solution = FiniteWidth(width)(asked)
    for layer in (1, 2):
        h = solution.fields[f"h{layer}"]
        phi = torch.nn.functional.gelu(h)
        torch.testing.assert_close(solution.kernels[f"Phi{layer}"].at(3, 0), phi[1].T @ phi[0] / width)
        g = solution.fields[f"g{layer}"]
        torch.testing.assert_close(solution.kernels[f"G{layer}"].at(0, 3), g[0].T @ g[1] / width)
    a, h = solution.state["a"], solution.fields["h2"][-1].requires_grad_()
    slope = torch.autograd.grad(torch.nn.functional.gelu(h).sum(), h)[0]
    expected = 1.2 * slope[:, :, None] * a[:, None, :]
    torch.testing.assert_close(solution.fields["g2"][-1], expected.flatten(1).detach(), rtol=1e-10, atol=1e-12)


def test_a_seed_gives_the_same_network_in_any_company():
    asked, solver = problem(), FiniteWidth(8)
    together = solver.ensemble(asked, (3, 0, 7))
    alone = [FiniteWidth(8, seed=s)(asked) for s in (3, 0, 7)]
    batches = FiniteWidth(8, batch=2).ensemble(asked, (3, 0, 7))
    for a, b, c in zip(together, alone, batches, strict=True):
        torch.testing.assert_close(a.f, b.f, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(a.f, c.f, rtol=1e-12, atol=1e-13)
    assert len({float(s.f[0, 0, 0]) for s in together}) == 3
    one_by_one = FiniteWidth(8, batch=1)
    assert one_by_one.ensemble(asked, (3, 0, 7)) == [replace(one_by_one, seed=s)(asked) for s in (3, 0, 7)]


def test_few_wide_networks_run_at_once_and_many_narrow_ones(monkeypatch):
    asked = problem()  # L = 2, P = 7 + 3, D = 64
    at_once = {n: FiniteWidth(n, dtype="float32").seeds_at_once(asked) for n in (16, 64, 256, 1024, 4096)}
    assert at_once[16] > at_once[64] > at_once[256] > at_once[1024] == at_once[4096] == 1
    assert at_once[64] >= 50
    assert FiniteWidth(64).seeds_at_once(asked) == at_once[64] // 2  # twice the bytes
    assert FiniteWidth(64).seeds_at_once(problem(1)) > at_once[64] // 2  # no hidden weights
    assert FiniteWidth(4096, batch=7).seeds_at_once(asked) == 7
    kept = FiniteWidth(64, snapshots=range(7))  # its records count for memory alone
    assert kept.seeds_at_once(asked) == at_once[64] // 2
    fit = int(2e6 / kept.bytes_per_seed(asked))
    monkeypatch.setattr(finite_width, "_BATCH_BYTES", 2e6)
    assert kept.seeds_at_once(asked) == fit < at_once[64] // 2


def test_on_a_gpu_memory_alone_limits_a_batch(monkeypatch):
    asked, solver = problem(), FiniteWidth(512)
    here = solver.seeds_at_once(asked)
    object.__setattr__(solver, "device", "cuda:0")  # none is needed to ask
    assert solver.seeds_at_once(asked) == int(5e8 / solver.bytes_per_seed(asked)) > 10 * here


def test_an_ensemble_trains_as_many_at_once_as_it_says(monkeypatch):
    asked, solver, sizes = problem(), FiniteWidth(8), []
    monkeypatch.setattr(finite_width, "_STEP_BYTES", 2.5 * sum(solver._numbers(asked)) * solver._itemsize)
    train = FiniteWidth._train
    monkeypatch.setattr(FiniteWidth, "_train", lambda self, p, seeds: sizes.append(len(seeds)) or train(self, p, seeds))
    split = solver.ensemble(asked, 5)
    assert sizes == [2, 2, 1]
    for a, b in zip(split, replace(solver, batch=5).ensemble(asked, 5), strict=True):
        torch.testing.assert_close(a.f, b.f, rtol=1e-12, atol=1e-13)


def test_widths_have_independent_draws():
    narrow, wide = (FiniteWidth(n, seed=0)(problem()).state["W0"] for n in (8, 16))
    assert not torch.allclose(narrow, wide[:8])


@pytest.mark.parametrize("optimiser", ["gradient_descent", "gradient_flow"])
def test_resumed_run_equals_the_uninterrupted_one(optimiser):
    asked = replace(problem(), training=mf.Training(0.3, 6, optimiser))
    solver = FiniteWidth(8, seed=2)
    assert solver.resume(solver(asked.with_steps(2)), 4) == solver(asked)


def test_gradient_flow_is_the_limit_of_small_steps():
    asked = problem(1)
    flow = FiniteWidth(8)(replace(asked, training=mf.Training(0.5, 2, "gradient_flow"))).f[-1]
    errors = [
        float((FiniteWidth(8)(replace(asked, training=mf.Training(1 / n, n))).f[-1] - flow).norm()) for n in (100, 200)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.05)


def test_a_seed_that_blows_up_does_not_cost_the_others():
    asked = mf.Problem(mf.digits(n_train=8), mf.Network(1, "tanh"), mf.mean_field(1.0), mf.Training(4.0, 150))
    solver = FiniteWidth(2, snapshots=(), raise_on_failure=False)
    status = [s.status for s in solver.ensemble(asked, 8)]
    blown, fine = status.count(mf.Status.DIVERGED), status.count(mf.Status.FINISHED)
    assert blown > 0, "the test needs a learning rate at which some networks blow up"
    assert fine > 0
    with pytest.raises(DivergedError, match="lower learning_rate") as caught:
        replace(solver, raise_on_failure=True).ensemble(asked, 8)
    assert [s.status for s in caught.value.solutions].count(mf.Status.FINISHED) == fine
    assert caught.value.solution.status is mf.Status.DIVERGED


def test_float32_is_kept_and_agrees():
    single, double = (FiniteWidth(16, dtype=kind)(problem()) for kind in ("float32", "float64"))
    assert single.f.dtype is torch.float32
    torch.testing.assert_close(single.f.double(), double.f, rtol=1e-4, atol=1e-5)


def test_kernels_are_made_when_they_are_looked_at_in_files_and_after_resuming_too(tmp_path):
    """What was not asked for costs nothing; all ways to it end at the same numbers."""
    whole = FiniteWidth(16, snapshots=(0, 3, -1), seed=1)(problem(2))
    kept = mf.load(mf.save(whole, tmp_path / "run.nc"))
    half = FiniteWidth(16, snapshots=(0, 3, -1), seed=1)(problem(2).with_steps(3))
    resumed = FiniteWidth(16, snapshots=(0, 3, -1)).resume(half, whole.steps - 3)
    copy = pickle.loads(pickle.dumps(whole))
    for solution in (whole, kept, resumed, copy):
        assert solution.tangent_deferred
        assert solution.has_tangent
        assert not any(kernel.made for kernel in solution.kernels.values())
    lean = FiniteWidth(16, snapshots=(0, 3, -1), seed=1, keep_neurons=False)(problem(2))
    assert not lean.tangent_deferred
    for solution in (kept, resumed, copy, lean):
        assert torch.equal(solution.tangent_kernel(3), whole.tangent_kernel(3))
        torch.testing.assert_close(solution.kernels["G2"].at(3, 0), whole.kernels["G2"].at(3, 0), rtol=1e-13, atol=0)
    looked_at = mf.load(mf.save(whole, tmp_path / "run.nc"))
    assert not looked_at.tangent_deferred
    assert looked_at == whole
    bare = replace(whole, fields={})
    assert mf.load(mf.save(bare, tmp_path / "bare.nc")) == bare


def test_a_large_tangent_kernel_needs_its_memory_only_when_it_is_looked_at(monkeypatch):
    asked = problem(1)
    solution = FiniteWidth(4)(asked)
    outputs = asked.data.y.numel()
    monkeypatch.setattr(checks, "free_memory", lambda device="cpu": 24.0 * outputs**2 - 1)
    with pytest.raises(MemoryError, match=f"a tangent kernel of {outputs} outputs needs"):
        solution.tangent_kernel(0)


def test_without_neurons_the_kernels_remain():
    kept, lean = (FiniteWidth(16, keep_neurons=keep)(problem(1)) for keep in (True, False))
    assert lean.kernels == kept.kernels
    with pytest.raises(ValueError, match="keep_neurons=True"):
        lean.measure()
    with pytest.raises(ValueError, match="keep_neurons=True"):
        lean.preactivations()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(width=-3), "width must be at least 1: received -3"),
        (dict(width=2.5), "width must be a whole number: received 2.5"),
        (dict(batch=0), "batch must be at least 1"),
        (dict(dtype="half"), "unknown dtype"),
    ],
)
def test_bad_settings_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        FiniteWidth(**change)


def test_too_wide_a_network_is_refused_with_the_bytes():
    with pytest.raises(MemoryError, match=r"\d+ bytes.*smaller width"):
        FiniteWidth(10**7)(problem(2))


def test_empty_or_repeated_seeds_are_refused():
    with pytest.raises(ValueError, match="seeds must be at least 1: received 0"):
        FiniteWidth(8).ensemble(problem(), 0)
    with pytest.raises(ValueError, match="same number twice"):
        FiniteWidth(8).ensemble(problem(), (1, 1))
