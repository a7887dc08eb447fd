"""Records every k steps: the same run, seen less often, in every solver, file and picture."""

import signal
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import meanfield as mf
from meanfield import load, plot, save
from solvers import (
    CausalDMFT,
    FiniteWidth,
    FixedPointDMFT,
    InfiniteLogitsLimit,
    Interrupted,
    TangentKernelLimit,
    WassersteinFlow,
    checkpointed,
    residual,
)
from solvers.finite import networks
from solvers.running import inputs
from solvers.running.trajectory import Trajectory

DATA = mf.digits(n_train=16, n_test=5)
BATCHES = mf.Training(0.1, 23, batch_size=5, batch_seed=2, momentum=0.3)
FULL = mf.Training(0.1, 23)
FLOW = mf.Training(0.1, 23, optimiser="gradient_flow")
EVERY = 7
STEPS = (0, 7, 14, 21, 23)
# solver, problem, how far records may be off; None: twice as far as two seeds, since passes reveal other directions of the neurons
CASES = {
    "flow": (WassersteinFlow(512), mf.Problem(DATA, training=BATCHES), 0),
    "flow, full": (WassersteinFlow(512), mf.Problem(DATA, training=FULL), 1e-13),
    "gradient flow": (WassersteinFlow(512), mf.Problem(DATA, training=FLOW), 0),
    "frozen": (WassersteinFlow(512), mf.Problem(DATA, scaling=mf.ic_mean_field(), training=BATCHES), 0),
    "networks": (FiniteWidth(32), mf.Problem(DATA, mf.Network(2), training=BATCHES), 0),
    "frozen networks": (FiniteWidth(32), mf.Problem(DATA, scaling=mf.ic_mean_field(), training=BATCHES), 0),
    "networks, full": (FiniteWidth(32), mf.Problem(DATA, training=FULL), 1e-13),
    "lazy": (TangentKernelLimit(), mf.Problem(DATA, mf.Network(2), mf.ntk(), BATCHES), 0),
    "lazy flow": (TangentKernelLimit(), mf.Problem(DATA, mf.Network(2), mf.ntk(), FLOW), 0),
    "logits": (
        InfiniteLogitsLimit(256),
        mf.Problem(DATA, scaling=mf.sym_default(), training=BATCHES, loss="logistic"),
        0,
    ),
    "exact dmft": (CausalDMFT(512), mf.Problem(DATA, mf.Network(2, "linear"), training=BATCHES), 1e-9),
    "dmft": (CausalDMFT(2048, tolerance=1e-3), mf.Problem(DATA, mf.Network(2), training=FULL), None),
    "dmft, batches": (CausalDMFT(2048), mf.Problem(DATA, mf.Network(2), training=BATCHES), None),
    "dmft, flow": (CausalDMFT(2048), mf.Problem(DATA, mf.Network(2), training=FLOW), None),
    "fixed point": (
        FixedPointDMFT(1024),
        mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(2, "linear"), training=mf.Training(0.1, 23)),
        0,
    ),
}


def _seldom(problem: mf.Problem, every: int = EVERY) -> mf.Problem:
    return replace(problem, training=replace(problem.training, record_every=every))


@pytest.mark.parametrize("name", CASES)
def test_the_same_run_is_seen_less_often(name):
    solver, problem, tolerance = CASES[name]
    often, seldom = solver(problem), solver(_seldom(problem))
    if tolerance is None:
        spread = torch.stack([replace(solver, seed=seed)(problem).f for seed in range(1, 6)]).std(0)
        tolerance = 2 * 2**0.5 * float(spread.norm() / often.f.norm())
    assert seldom.recorded_steps == STEPS
    assert seldom.steps == 23
    assert often.recorded_steps == tuple(range(24))
    torch.testing.assert_close(seldom.times, often.times[list(STEPS)])
    for one, other in ((often.f, seldom.f), (often.f_test, seldom.f_test)):
        assert one is not None
        assert other is not None
        apart = float((one[list(STEPS)] - other).norm() / one.norm())
        assert apart <= tolerance
    assert len(seldom.loss) == len(STEPS)
    kernels = seldom.kernels.values()
    assert all(set(kernel.steps) <= set(STEPS) for kernel in kernels)
    for step in (0, -1):
        apart = (seldom.tangent_kernel(step) - often.tangent_kernel(step)).norm() / often.tangent_kernel(step).norm()
        assert float(apart) <= max(2 * tolerance, 1e-6)


def test_steps_between_records_see_their_batch_alone(monkeypatch):
    """Outputs at all samples are asked for at recorded steps only."""
    seen, forward = [], networks.Networks._forward

    def counting(self, parameters, x):
        seen.append(len(x))
        return forward(self, parameters, x)

    monkeypatch.setattr(networks.Networks, "_forward", counting)
    FiniteWidth(4, snapshots=())(_seldom(mf.Problem(DATA, training=BATCHES)))
    assert seen.count(5) == 23 + len(STEPS)  # batches, and test samples, of which there are as many
    assert seen.count(16) == len(STEPS)


@pytest.mark.parametrize(
    "name", ["flow", "flow, full", "gradient flow", "networks", "lazy", "logits", "dmft, batches", "dmft, flow"]
)
@pytest.mark.parametrize("first", [14, 17])
def test_resumed_it_is_the_uninterrupted_run(name, first):
    """Also from between two records: the record of the end, which a longer run has not, is dropped."""
    solver, problem, _ = CASES[name]
    solver = replace(solver, keep_state=True) if isinstance(solver, CausalDMFT) else solver
    asked = _seldom(problem)
    part = solver(asked.with_steps(first))
    assert part.recorded_steps == ((0, 7, 14) if first == 14 else (0, 7, 14, 17))
    whole, resumed = solver(asked), solver.resume(part, 23 - first)
    assert resumed.recorded_steps == STEPS
    assert resumed.f.equal(whole.f)
    assert {k: v for k, v in resumed.kernels.items() if "Phi" in k} == {
        k: v for k, v in whole.kernels.items() if "Phi" in k
    }
    assert all(resumed.state[k].equal(whole.state[k]) for k in whole.state)


@pytest.mark.parametrize("name", ["flow", "networks", "dmft, batches"])
def test_interrupted_between_records_it_keeps_the_step_it_was_at(name, monkeypatch):
    solver, problem, _ = CASES[name]
    asked, seen, finite = _seldom(problem), [], Trajectory.must_be_finite
    whole = solver(asked)

    def then_interrupt(self, *args):
        seen.append(1)
        if self.last == 10 and len(seen) > 10:
            signal.raise_signal(signal.SIGINT)
            seen.clear()
        finite(self, *args)

    monkeypatch.setattr(Trajectory, "must_be_finite", then_interrupt)
    with pytest.raises(Interrupted) as caught:
        solver(asked)
    monkeypatch.undo()
    part = caught.value.solution
    assert part is not None
    assert part.recorded_steps == (0, 7, 11)
    assert solver.resume(part, 12).f.equal(whole.f)


@pytest.mark.parametrize("name", ["flow", "dmft, batches"])
def test_checkpoints_between_records(name, tmp_path):
    solver, problem, _ = CASES[name]
    asked = _seldom(problem)
    assert checkpointed(solver, asked, tmp_path / "run.nc", every=5).f.equal(solver(asked).f)


def test_files_keep_the_steps(tmp_path):
    solution = WassersteinFlow(64)(_seldom(mf.Problem(DATA, training=BATCHES)))
    again = load(save(solution, tmp_path / "run.nc"))
    assert again == solution
    assert again.recorded_steps == STEPS
    assert again != replace(solution, recorded_steps=(0, 1, 2, 3, 4))


def test_pictures_and_comparisons_follow():
    asked = _seldom(mf.Problem(DATA, training=BATCHES))
    nets, limit = FiniteWidth(16).ensemble(asked, 3), WassersteinFlow(256)(asked)
    report = mf.deviation(nets, limit, ["loss", "f"])
    assert report.widths == (16,)
    lines = plot.loss(nets, limit).get_lines()
    assert {len(line.get_xdata()) for line in lines} == {len(STEPS)}
    assert max(max(line.get_xdata()) for line in lines) == pytest.approx(2.3)
    deep = CausalDMFT(512)(replace(asked, network=mf.Network(2)))
    mesh = plot.two_times(deep, ["Phi1", "G2"])[0].collections[0]
    around = [-3.5, 3.5, 10.5, 17.5, 22.0, 24.0]  # each record around its step, in units of time
    assert mesh.get_coordinates()[0, :, 0].tolist() == pytest.approx([0.1 * step for step in around])
    plt.close("all")


def test_a_blow_up_between_records_is_named_by_its_step():
    wild = mf.Problem(
        DATA, mf.Network(activation="relu"), training=mf.Training(1e60, 40, batch_size=3, record_every=39)
    )
    with pytest.raises(Exception, match=r"It happened at step [1-9] of 40"):
        FiniteWidth(8)(wild)


def test_what_needs_every_step_says_so():
    asked = _seldom(mf.Problem(DATA, mf.Network(2), training=BATCHES))
    with pytest.raises(ValueError, match=r"responses are functions of every step: received record_every=7"):
        CausalDMFT(512, responses=True)(asked)
    with pytest.raises(
        ValueError, match=r"snapshots must be recorded steps, multiples of record_every=7 or the last: received 3, 8"
    ):
        WassersteinFlow(64, snapshots=(0, 3, 8, 14))(replace(asked, network=mf.Network()))
    with pytest.raises(ValueError, match=r"record_every=1"):
        residual(CausalDMFT(512)(_seldom(mf.Problem(DATA, mf.Network(2), training=FULL))))


def test_steps_must_fit_the_outputs():
    solution = WassersteinFlow(64)(_seldom(mf.Problem(DATA, training=BATCHES)))
    for wrong in ((0, 7), (0, 7, 7, 21, 23), (5, 4, 3, 2, 1)):
        with pytest.raises(ValueError, match=r"recorded_steps must be 5 increasing steps"):
            replace(solution, recorded_steps=wrong)


def test_many_samples_are_not_kept_twice():
    """A flow in batches forms its inputs as it goes; in one piece or in blocks they are the same."""
    like = torch.empty(0, dtype=torch.float64)
    asked = mf.Problem(DATA, mf.Network(bias_std=0.5), training=BATCHES)
    whole = inputs.Inputs(replace(asked, training=FULL), like)(inputs.EVERYWHERE)
    own = inputs.Inputs(asked, like)
    assert own.all is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "_BLOCK", 3 * whole.shape[1])
        blocks = list(own.blocks(inputs.EVERYWHERE))
    assert [len(block) for block in blocks] == [3] * 7
    assert torch.cat(blocks).equal(whole)
    assert own(slice(14, 19)).equal(whole[14:19])
    assert own(torch.tensor([3, 15, 0])).equal(whole[[3, 15, 0]])


class _Largest(TorchDispatchMode):
    """The most bytes of one storage that an operation made, those of `known` tensors left out"""

    def __init__(self, *known):
        super().__init__()
        self.known, self.bytes = {t.untyped_storage().data_ptr() for t in known}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for t in made if isinstance(made, tuple | list) else (made,):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "solver",
    [WassersteinFlow(64, initial="iid", snapshots=()), FiniteWidth(64, snapshots=())],
    ids=["flow", "networks"],
)
def test_no_second_copy_of_many_samples_is_made(monkeypatch, solver, dtype):
    """P D = 200,000 numbers; nothing that is made on the way has more than an eighth of them. Full batches do make a copy."""
    monkeypatch.setattr(inputs, "_BLOCK", 5000)
    monkeypatch.setattr(networks, "POINTS_AT_ONCE", 20_000)
    g, largest = torch.Generator().manual_seed(0), {}
    x = torch.randn(4000, 50, generator=g, dtype=torch.float64)
    for batch in (16, None):
        asked = mf.Problem(mf.Dataset(x, x[:, :1]), training=mf.Training(0.1, 3, batch_size=batch, record_every=3))
        with _Largest(asked.data.x, asked.data.y) as seen:
            replace(solver, dtype=dtype)(asked)
        largest[batch] = seen.bytes
    assert largest[16] <= 8 * 200_000 / 8
    assert largest[None] >= 4 * 200_000
