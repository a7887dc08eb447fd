"""Outputs with positions: trained with masks as torch trains them, and solutions that compare, pool, save, load and draw."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import meanfield as mf
from meanfield.comparison.observables import observe
from meanfield.network.architecture import architecture
from meanfield.solution.pooling import pooled
from meanfield.solution.solution import Solution, Status
from meanfield.solution.two_time import TwoTimeKernel
from solvers import CausalDMFT, FiniteWidth
from solvers.dmft.module_limit import ModuleLimit
from solvers.dmft.neurons import Population
from solvers.finite.modules import ModuleNetworks
from solvers.running.failures import Watch
from solvers.running.sharding import Shard
from solvers.running.skeleton import Samples
from solvers.running.trajectory import BlewUp, Trajectory
from tests.any_networks import Language, text

CROSS, DOUBLE = mf.loss("cross_entropy"), torch.empty(0, dtype=torch.float64)


class Three(torch.nn.Module):
    """Four outputs for each of three tokens"""

    def __init__(self, n):
        super().__init__()
        self.tok, self.out = torch.nn.Embedding(6, n), torch.nn.Linear(n, 4, bias=False)

    def forward(self, x):
        return self.out(torch.tanh(self.tok(x)))


def masked_text():
    """Tokens (5 and 1, 8), of the next ones some -100, all of the third sample, as a problem has them; and these labels"""
    x, y = text()
    labels = y.argmax(-1)
    labels.view(-1)[::3] = -100
    labels[2] = -100
    given = mf.Dataset(x[:5], labels[:5], x[5:], labels[5:])
    return mf.Problem(given, Language, loss="cross_entropy").data, labels


def samples(data):
    return Samples(data.x, data.y, data.x_test)


def test_networks_with_masks_and_batches_train_as_in_torch():
    """Two seeds by the loop through time, beside one written here with torch's cross-entropy and its ignore_index"""
    data, labels = masked_text()
    training = mf.Training(0.3, 4, batch_size=2, record_every=2)
    problem = mf.Problem(data, Language, mf.mean_field(0.8), training, "cross_entropy")
    for seed, solution in zip((3, 4), FiniteWidth(10).ensemble(problem, (3, 4)), strict=True):
        alone = ModuleNetworks(architecture(Language), mf.mean_field(0.8), 10, (seed,), samples(data), CROSS, DOUBLE)
        state, batches, fs, losses = alone.initial_state(), training.batches(5, 0), [], []
        for step in range(5):
            with torch.no_grad():
                f = torch.cat([alone.outputs(state, x)[0] for x in (data.x, data.x_test)])
            fs.append(f)
            losses.append(F.cross_entropy(f[:5].flatten(0, 1), labels[:5].flatten(), ignore_index=-100))
            if step < 4:
                batch, leaves = next(batches), [t.detach().requires_grad_() for t in state]
                f = alone.outputs(leaves, data.x[batch])[0]
                loss = F.cross_entropy(f.flatten(0, 1), labels[batch].flatten(), ignore_index=-100, reduction="sum")
                loss = loss / max(1, int((labels[batch] >= 0).sum()))
                slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
                own = zip(state, slopes, alone.rates, strict=True)
                state = [t if g is None else t - 0.3 * rate * g for t, g, rate in own]
        assert solution.recorded_steps == (0, 2, 4)
        assert solution.status is Status.FINISHED
        torch.testing.assert_close(
            torch.cat([solution.f, solution.f_test], 1), torch.stack(fs)[::2], rtol=1e-11, atol=1e-12
        )
        torch.testing.assert_close(solution.loss, torch.stack(losses)[::2], rtol=1e-12, atol=0)
        assert float((fs[-1] - fs[0]).abs().max()) > 0.01


@pytest.mark.parametrize("method", ["networks", "limit"])
def test_what_is_not_counted_moves_nothing(method):
    """The slope of the mean over counted positions is that without the samples of which none is counted"""
    data, _ = masked_text()
    given = samples(data)
    if method == "networks":
        made = ModuleNetworks(architecture(Language), mf.mean_field(1.0), 8, (0,), given, CROSS, DOUBLE)
    else:
        population = Population(64, 0, "sobol", DOUBLE, Shard(64))
        made = ModuleLimit(architecture(Language), mf.mean_field(1.0), given, CROSS, population, (1e-9, 1e-9))
    state = made.initial_state()
    whole = made.backward(made.forward(state, slice(0, 5), True))
    part = made.backward(made.forward(state, torch.tensor([0, 1, 3, 4]), True))
    for one, two in zip(whole, part, strict=True):
        assert float((one.square().sum() - two.square().sum()).abs()) <= 1e-9 * float(two.square().sum())
    assert float(part[-2].abs().max()) > 0


def test_one_network_that_blows_up_is_told_among_others():
    """By outputs at any position; and by its loss, against the scale of the whole start"""
    data, _ = masked_text()
    problem = mf.Problem(data, Language, loss="cross_entropy")
    watch, f = Watch(problem), torch.zeros(3, 5, 8, 13, dtype=torch.float64)
    assert watch.beyond(watch.loss(f)).tolist() == [False] * 3
    f[1] = 1e15 * (1 - data.y)
    assert watch.beyond(watch.loss(f)).tolist() == [False, True, False]
    f[2, 4, 7, 12], run = torch.inf, Trajectory()
    with pytest.raises(BlewUp):
        run.must_be_finite(f, torch.zeros(3))
    assert run.bad is not None
    assert run.bad.tolist() == [False, False, True]


def test_the_limit_takes_tokens_and_classes_and_is_kept(tmp_path):
    x, y = torch.tensor([[0, 1, 5], [2, 0, 3]]), torch.tensor([[1, -1, 3], [0, 2, 2]])
    problem = mf.Problem(mf.Dataset(x, y, x[:1], y[:1]), Three, training=mf.Training(0.5, 3), loss="cross_entropy")
    found = CausalDMFT(samples=64)(problem)
    assert (found.f.shape, found.f_test.shape) == ((4, 2, 3, 4), (4, 1, 3, 4))
    right = [F.cross_entropy(f.double().flatten(0, 1), y.flatten(), ignore_index=-1) for f in found.f]
    torch.testing.assert_close(found.loss, torch.stack(right), rtol=1e-13, atol=0)
    assert float(found.loss[-1]) < float(found.loss[0])
    assert mf.load(mf.save(found, tmp_path / "limit.nc")) == found


@pytest.mark.parametrize(
    "solver", [FiniteWidth(8), CausalDMFT(samples=64, keep_state=True)], ids=lambda s: type(s).__name__
)
def test_a_run_with_positions_and_masks_goes_on_bit_for_bit(solver):
    x, y = torch.tensor([[0, 1, 5], [2, 0, 3], [4, 4, 1]]), torch.tensor([[1, -1, 3], [-1, -1, -1], [0, 2, 2]])
    training = mf.Training(0.5, 6, batch_size=1, momentum=0.5)  # a batch may hold nothing that is counted
    problem = mf.Problem(mf.Dataset(x, y, x[:1]), Three, training=training, loss="cross_entropy")
    whole, part = solver(problem), solver(problem.with_steps(2))
    assert torch.equal(solver.resume(part, 4).f, whole.f)
    assert torch.equal(solver.resume(part, 4).f_test, whole.f_test)
    assert torch.isfinite(whole.loss).all()
    estimate = solver.estimate(problem)
    assert estimate.seconds > 0


# ---- solutions -------------------------------------------------------------------------------------------------------


def solution(seed, width=None, steps=3):
    """One with outputs (3, 4) of two samples and of one to watch; tokens as inputs"""
    g = torch.Generator().manual_seed(seed + 100 * (width or 0))
    y = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    data = mf.Dataset(np.array([[0, 1, 5], [2, 0, 3]]), y, np.array([[1, 1, 1]]), y[:1])
    problem = mf.Problem(data, Three, training=mf.Training(0.1, steps))
    spread = 1 if width is None else 2

    def f(samples):
        return spread * torch.randn(steps + 1, samples, 3, 4, generator=g, dtype=torch.float64)

    solver = {"name": "FiniteWidth", "width": width, "seed": seed} if width else {"name": "CausalDMFT", "seed": seed}
    kernel = torch.randn(1, 2, 12, 2, 12, generator=g, dtype=torch.float64)
    return Solution(problem, solver, f(2), f(1), {}, snapshots=(steps,), tangent=kernel)


def test_losses_of_a_solution_are_means_over_samples_and_positions():
    found = solution(0)
    y, y_test = found.problem.data.y.numpy(), found.problem.data.y_test.numpy()
    for loss, f, targets in ((found.loss, found.f, y), (found.test_loss, found.f_test, y_test)):
        right = (0.5 * (f.numpy() - targets) ** 2).sum(-1).reshape(4, -1).mean(1)
        np.testing.assert_allclose(loss, right, rtol=1e-13)
    with pytest.raises(ValueError, match=r"f must have shape \(R, 2, 3, 4\): received \(4, 2, 12\)"):
        replace(found, f=found.f.flatten(2))


def test_solutions_with_positions_pool_and_compare():
    limits, nets = [solution(s) for s in range(3)], [solution(s, n) for n in (4, 8) for s in range(3)]
    mean = pooled(limits)
    right = np.stack([s.f.numpy() for s in limits])
    np.testing.assert_allclose(mean.f, right.mean(0), rtol=1e-13)
    np.testing.assert_allclose(mean.standard_errors["f"], right.std(0, ddof=1) / 3**0.5, rtol=1e-12)
    assert mean.standard_errors["f_test"].shape == (4, 1, 3, 4)
    assert observe(nets[0], "f").shape == (4 * 2 * 12,)
    report = mf.deviation(nets, limits, predicted=torch.ones(2, 3, 4))
    for i, width in enumerate((4, 8)):
        apart = np.stack([s.f.numpy() for s in nets if s.width == width]) - right.mean(0)
        var = apart.reshape(3, -1).var(0, ddof=1).sum()
        np.testing.assert_allclose(report["f"].variance[i], var / (right.mean(0) ** 2).sum(), rtol=1e-10)
    assert report.predicted_n_var == 1
    assert 0 <= mf.alignment(torch.eye(2), limits[0].problem.data.y) <= 1


@pytest.mark.parametrize("make", [lambda: solution(1, 4), lambda: pooled([solution(0), solution(1)])])
def test_solutions_with_positions_and_tokens_are_kept(tmp_path, make):
    kept = make()
    loaded = mf.load(mf.save(kept, tmp_path / "kept.nc"))
    assert loaded == kept
    assert loaded.problem.data == kept.problem.data
    assert loaded.problem.data.x.dtype == torch.int64


def test_dimensions_of_kept_positions_have_names(tmp_path):
    import xarray

    with xarray.open_dataset(mf.save(solution(0), tmp_path / "kept.nc"), engine="h5netcdf") as found:
        assert found["f"].dims == ("time", "sample", "output_axis_1", "output")
        assert found["y_test"].dims == ("test_sample", "output_axis_1", "output")
        assert found["x"].dims == ("sample", "input")


def test_data_of_any_shape_come_from_npz_files(tmp_path):
    images, labels = np.random.default_rng(0).normal(size=(5, 1, 3, 3)), np.arange(20).reshape(5, 4)
    np.savez(tmp_path / "images.npz", x=images, y=labels)
    data = mf.from_file(tmp_path / "images.npz", n_test=2)
    assert data.x.numpy().tolist() == images[:3].tolist()
    assert data.y_test.tolist() == labels[3:].tolist()
    np.savez(tmp_path / "tokens.npz", x=labels.astype(np.uint16), y=labels, x_test=labels[:1].astype(np.uint16))
    data = mf.from_file(tmp_path / "tokens.npz")
    assert data.x.dtype == data.x_test.dtype == torch.int64
    assert data.x.tolist() == labels.tolist()


def test_pictures_of_outputs_with_positions():
    nets, limit = [solution(s, 4) for s in range(2)], solution(0)
    for test in (False, True):
        axes = mf.plot.outputs(nets, limit, samples=(0,), output=7, test=test)
        of = limit.f_test if test else limit.f
        drawn = [line.get_ydata() for line in axes[0].lines if line.get_label() == "limit"]
        np.testing.assert_array_equal(drawn[0], of[:, 0, 1, 3].numpy())
    mf.plot.outputs(nets, limit, samples=(0, 1))
    mf.plot.loss(nets, limit, test=True)
    (panel,) = mf.plot.kernels(limit, name="tangent_kernel", steps=(-1,))
    kernel = limit.tangent_kernel().numpy()
    right = [[np.mean([kernel[p, c, q, c] for c in range(12)]) for q in range(2)] for p in range(2)]
    np.testing.assert_allclose(panel.images[0].get_array(), right, rtol=1e-13)
    rows = torch.randn(
        1, 5, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )  # of samples and positions
    seen = replace(limit, kernels={"Phi[out]": TwoTimeKernel((3,), rows)})
    (panel,) = mf.plot.kernels(seen, name="Phi[out]", steps=(-1,))
    np.testing.assert_allclose(panel.images[0].get_array(), (rows[0].T @ rows[0]).numpy(), rtol=1e-13)
    with pytest.raises(ValueError, match=r"output=12 does not exist: the outputs are 0..11"):
        mf.plot.outputs(nets, limit, samples=(0,), output=12)
    plt.close("all")
