"""Fresh samples in each step: one sequence for all solvers, widths and resumed runs (equation 117)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import meanfield as mf
from solvers import (
    CausalDMFT,
    FiniteWidth,
    FixedPointDMFT,
    InfiniteLogitsLimit,
    RevealedWidth,
    SolverError,
    TangentKernelLimit,
    WassersteinFlow,
    gibbs_fixed_point,
    lazy_prediction,
    predicted_bias,
    predicted_variance,
    residual,
)

STREAM = mf.stream(mf.Teacher(4, link="erf", noise=0.1, seed=2), batch=3, watched=8, seed=5)
PROBLEM = mf.Problem(STREAM, mf.Network(1, "erf"), training=mf.Training(0.2, 8, momentum=0.4, record_every=2))
DEEP = replace(PROBLEM, network=mf.Network(2, "tanh", bias_std=0.3))


class Residual(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.read, self.mix, self.out = (
            nn.Linear(4, n, bias=False),
            nn.Linear(n, n, bias=False),
            nn.Linear(n, 1, bias=False),
        )

    def forward(self, x):
        h = self.read(x)
        return self.out(torch.tanh(h + self.mix(torch.tanh(h))))


# -- the sequence --------------------------------------------------------------------------------------------------------


def test_samples_of_a_step_depend_on_the_seed_and_the_step_alone():
    later = STREAM.fresh(7)
    assert STREAM.fresh(7) == later
    seen = torch.cat([STREAM.x, *(STREAM.fresh(k).x for k in range(50))])
    assert len(torch.unique(seen, dim=0)) == len(seen) == 8 + 150
    assert not torch.equal(replace(STREAM, seed=6).fresh(7).x, later.x)
    assert abs(float(seen.mean())) < 4 / math.sqrt(seen.numel())
    assert abs(float(seen.square().mean()) - 1) < 4 * math.sqrt(2 / seen.numel())


def test_teachers_and_mixtures_are_those_of_the_datasets():
    data = mf.multi_index_teacher(20, 0, inputs=6, directions=2, link="sin", seed=3)
    teacher = mf.Teacher(6, 2, "sin", seed=3)
    torch.testing.assert_close(torch.sin(data.x @ teacher.vectors).sum(1, keepdim=True), data.y)
    g = torch.Generator().manual_seed(0)
    x, y = mf.Mixture(3, 3, 4.0, seed=1)(4000, g)
    centres, error = mf.Mixture(3, 3, 4.0, seed=1).means, 5 / math.sqrt(4000 / 3)
    assert all(float((x[y[:, c] == 1].mean(0) - centres[c]).abs().max()) < error for c in range(3))
    x, y = mf.Mixture(3)(4000, g)
    assert float(((y * x).mean(0) - mf.Mixture(3).means[0]).abs().max()) < 5 / math.sqrt(4000)
    kept = mf.gaussian_mixture(4000, 0, inputs=3, seed=0)
    assert float(((kept.y * kept.x).mean(0) - mf.Mixture(3).means[0]).abs().max()) < 5 / math.sqrt(4000)


def test_noise_is_in_the_targets_that_are_trained_on_alone():
    loud = replace(STREAM, batch=4000).fresh(0)
    noise = loud.y - torch.erf(loud.x @ STREAM.law.vectors)
    assert abs(float(noise.std()) / 0.1 - 1) < 4 / math.sqrt(8000)
    torch.testing.assert_close(STREAM.y, torch.erf(STREAM.x @ STREAM.law.vectors))


def test_networks_follow_one_pass_descent():
    """Against a plain loop on f(x) = (1/N) a . erf(w x / sqrt D), which takes the samples from the law itself"""
    width, law = 6, STREAM.law
    solution = FiniteWidth(width)(PROBLEM)
    start = FiniteWidth(width)(PROBLEM.with_steps(0)).state
    w, a = start["W0"].clone(), start["a"].clone()
    vw, va = torch.zeros_like(w), torch.zeros_like(a)
    for step in range(9):
        if step % 2 == 0:
            f = torch.erf(STREAM.x @ w.T / 2) @ a / width
            torch.testing.assert_close(solution.f[step // 2], f, rtol=1e-10, atol=1e-12)
        entropy = np.random.SeedSequence([5, 1, step]).generate_state(1, np.uint64)[0] % 2**63
        x, y = law(3, torch.Generator().manual_seed(int(entropy)))
        w, a = w.requires_grad_(), a.requires_grad_()
        loss = 0.5 * (torch.erf(x @ w.T / 2) @ a / width - y).square().mean()
        gw, ga = torch.autograd.grad(loss, (w, a))
        vw, va = 0.4 * vw - width * gw, 0.4 * va - width * ga
        w, a = (w + 0.2 * vw).detach(), (a + 0.2 * va).detach()


def test_a_network_is_its_own_measure_and_its_own_module():
    net = FiniteWidth(20, seed=1)(PROBLEM)
    flow = WassersteinFlow(initial=net.measure(0))(PROBLEM)
    torch.testing.assert_close(flow.f, net.f, rtol=1e-10, atol=1e-12)

    class Same(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.read, self.out = nn.Linear(4, n, bias=False), nn.Linear(n, 1, bias=False)

        def forward(self, x):
            return self.out(torch.erf(self.read(x)))

    module = FiniteWidth(20, seed=1)(replace(PROBLEM, network=Same))
    start = FiniteWidth(20, seed=1)(replace(PROBLEM, network=Same).with_steps(0)).state
    w, a = start["read.weight"], start["out.weight"].T
    measure = mf.ParticleMeasure(a.contiguous(), w, torch.full((20,), 1 / 20, dtype=torch.float64))
    again = WassersteinFlow(initial=measure)(PROBLEM)
    torch.testing.assert_close(module.f, again.f, rtol=1e-10, atol=1e-12)


# -- limits --------------------------------------------------------------------------------------------------------------


def _off(nets, limits):
    """|mean of networks - mean of limits| and its standard error, over all records"""
    both = [torch.stack([s.f.double() for s in some]) for some in (nets, limits)]
    error = math.sqrt(sum(float(f.var(0).sum()) / len(f) for f in both))
    return float((both[0].mean(0) - both[1].mean(0)).norm()), error


LAYERED = mf.Architecture(mf.Network(2, "tanh"), rate={"hidden.*": 0.5}, weight_std={"input": 1.3})


@pytest.mark.parametrize(
    "network",
    [mf.Network(1, "erf"), mf.Network(2, "tanh", bias_std=0.3), Residual, LAYERED],
    ids=["one", "two", "module", "by layer"],
)
def test_networks_agree_with_the_sweep_of_their_sequence_and_of_no_other(network):
    plain = mf.Training(0.3, 16, record_every=4)
    # two watched samples in four dimensions: most of what is trained on lies beyond their span
    asked = replace(PROBLEM, network=network, training=plain, data=mf.stream(STREAM.law, 3, 2, seed=5))
    limits = [CausalDMFT(1024, seed=s, snapshots=())(asked) for s in range(3)]
    nets = FiniteWidth(256, dtype="float32", snapshots=()).ensemble(asked, 24)
    distance, error = _off(nets, limits)
    assert distance < 2 * error
    other = replace(asked, data=replace(asked.data, seed=6))
    assert _off(nets, [CausalDMFT(1024, seed=s, snapshots=())(other) for s in range(3)])[0] > 8 * error


def test_the_sweep_of_one_layer_is_the_flow_and_revealed_networks_are_networks():
    asked = replace(PROBLEM, training=mf.Training(0.3, 16, record_every=4))
    flow = WassersteinFlow(2**13)(asked)
    sweeps = [CausalDMFT(2048, seed=s, snapshots=())(asked) for s in range(4)]
    assert float((sum(s.f for s in sweeps) / 4 - flow.f).norm() / flow.f.norm()) < 5e-3
    deep = replace(asked, network=mf.Network(2, "tanh"))
    revealed = RevealedWidth(96, snapshots=()).ensemble(deep, 24)
    nets = FiniteWidth(96, snapshots=()).ensemble(deep, 24)
    distance, error = _off(nets, revealed)
    assert distance < 2 * error
    ratio = np.log([float(torch.stack([s.f for s in some]).var(0).sum()) for some in (nets, revealed)])
    assert abs(ratio[0] - ratio[1]) < 1.0  # each variance of 24, over correlated numbers


def test_linear_networks_are_exact():
    asked = replace(PROBLEM, network=mf.Network(2, "linear"), data=mf.stream(mf.Teacher(4, link="linear"), 2, 6))
    one, other = (CausalDMFT(n, seed=n)(asked) for n in (64, 128))
    assert one.stats["exact"]
    torch.testing.assert_close(one.f, other.f, rtol=1e-8, atol=1e-10)


# -- going on, files, refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "problem"),
    [
        (WassersteinFlow(64), PROBLEM),
        (FiniteWidth(8, seed=2), DEEP),
        (FiniteWidth(8), replace(PROBLEM, network=Residual)),
        (CausalDMFT(256, keep_state=True), DEEP),
        (CausalDMFT(256, keep_state=True), replace(PROBLEM, network=Residual)),
        (RevealedWidth(64, keep_state=True), DEEP),
    ],
    ids=["flow", "net", "module net", "sweep", "module sweep", "revealed"],
)
def test_resumed_runs_equal_uninterrupted_ones(solver, problem, tmp_path):
    part = solver(problem.with_steps(4))
    given = {} if isinstance(problem.network, mf.Network) else {"network": Residual}
    kept = mf.load(mf.save(part, tmp_path / "part.nc"), **given)
    assert kept.problem.data == problem.data
    assert solver.resume(kept, 4) == solver(problem)


def test_a_law_of_your_own_is_given_again(tmp_path):
    def mine(count, generator):
        x = torch.rand(count, 4, generator=generator)
        return x, x.sum(1)

    own = mf.stream(mine, 2, 5)
    assert own.name == "mine"
    problem = replace(PROBLEM, data=own)
    kept = mf.load(mf.save(WassersteinFlow(64)(problem.with_steps(4)), tmp_path / "part.nc"))
    assert torch.equal(kept.problem.data.x, own.x)
    for wrong in (lambda: WassersteinFlow(64).resume(kept, 4), lambda: FiniteWidth(4)(kept.problem)):
        with pytest.raises(
            ValueError, match=r"law of the stream 'mine' is code of yours, .* give it again, replace\(problem"
        ):
            wrong()
    again = replace(kept, problem=replace(kept.problem, data=replace(kept.problem.data, law=mine)))
    assert WassersteinFlow(64).resume(again, 4) == WassersteinFlow(64)(problem)
    for other in (lambda n, g: (mine(n, g)[0], 2 * mine(n, g)[1]), lambda n, g: (torch.rand(n, 4), torch.ones(n))):
        lied = replace(kept, problem=replace(kept.problem, data=replace(kept.problem.data, law=other)))
        with pytest.raises(ValueError, match="'mine' gives other watched samples than those of the solution"):
            WassersteinFlow(64).resume(lied, 4)


def test_classes_and_tokens_of_modules():
    class Letters(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.read, self.out = nn.Embedding(6, n), nn.Linear(n, 3, bias=False)

        def forward(self, x):
            return self.out(torch.tanh(self.read(x)).mean(1))

    def law(count, generator):
        x = torch.randint(6, (count, 4), generator=generator)
        return x, x.sum(1) % 3

    problem = mf.Problem(
        mf.stream(law, 4, 10), Letters, training=mf.Training(0.5, 40, record_every=40), loss="cross_entropy"
    )
    assert problem.data.y.shape == (10, 3)
    nets = FiniteWidth(256, snapshots=()).ensemble(problem, 6)
    problem.must_have_its_law()  # labels and tokens as the module takes them
    limits = [CausalDMFT(512, seed=s, snapshots=())(problem) for s in range(3)]
    distance, error = _off(nets, limits)
    assert distance < 2.5 * error
    assert error < 0.2 * float(nets[0].f.norm())


def test_steps_without_a_record_do_not_look_at_the_watched_samples():
    seen = []

    def tanh(h):
        seen.append(h.shape[-1])
        return torch.tanh(h)

    network = mf.Network(1, mf.Activation("noted", tanh, lambda h: 1 - torch.tanh(h) ** 2))
    many = mf.stream(mf.Teacher(4, link="erf"), 2, 1000)
    problem = replace(PROBLEM, data=many, network=network, training=mf.Training(0.1, 20, record_every=20))
    seen.clear()
    FiniteWidth(4, snapshots=())(problem)
    assert seen.count(2) == 20
    assert seen.count(1000) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": mf.Training(batch_size=2)}, r"a stream has its own, mf.stream\(.., batch=..\)"),
        (
            {"training": mf.Training(optimiser="gradient_flow")},
            "gradient_flow has none: take optimiser='gradient_descent'",
        ),
        ({"scaling": mf.ic_mean_field()}, "those of a stream are not known"),
    ],
)
def test_what_a_stream_excludes_is_refused_with_the_problem(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PROBLEM, **change)


PLAIN = replace(PROBLEM, network=mf.Network(2, "tanh"), training=mf.Training(0.1, 3))


@pytest.mark.parametrize(
    "asked",
    [
        lambda: TangentKernelLimit()(replace(PLAIN, scaling=mf.ntk())),
        lambda: lazy_prediction(replace(PLAIN, scaling=mf.ntk())),
        lambda: FixedPointDMFT(512)(PLAIN),
        lambda: residual(CausalDMFT(256)(PLAIN)),
        lambda: InfiniteLogitsLimit(16)(
            replace(PLAIN, network=mf.Network(1), scaling=mf.default(4), loss="logistic", data=mf.stream(mf.Mixture(4)))
        ),
        lambda: gibbs_fixed_point(replace(PROBLEM, training=mf.Training(temperature=0.3, weight_decay=0.3))),
        lambda: WassersteinFlow(64, readout_ridge=0.3)(replace(PROBLEM, training=mf.Training(0.1, 3))),
        lambda: mf.free_energy(WassersteinFlow(64)(PROBLEM)),
        lambda: predicted_bias(PLAIN, 4, 2, method="halves"),
        lambda: predicted_variance(PLAIN, method="derivative"),
    ],
    ids=[
        "lazy",
        "prediction",
        "fixed point",
        "certificate",
        "logits",
        "gibbs",
        "ridge",
        "free energy",
        "bias",
        "variance",
    ],
)
def test_what_needs_the_same_samples_in_each_step_refuses_streams_by_name(asked):
    with pytest.raises(ValueError, match=r"stream .*fresh"):
        asked()


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (lambda count, g: torch.zeros(count, 2), "must give a pair x, y: received Tensor"),
        (lambda count, g: (torch.zeros(3, 2), torch.zeros(3)), "as many samples as it is asked for, 1: received"),
        (
            lambda count, g: (torch.full((count, 2), torch.nan), torch.zeros(count)),
            "stream '<lambda>' failed at the watched samples: x holds 512 value",
        ),
        (
            lambda count, g: (torch.randn(count, 2), torch.zeros(count)),
            "two different batches for step 0, .* is handed",
        ),
        (
            lambda count, g: (torch.ones(count, 2), torch.from_numpy(np.random.rand(count))),  # noqa: NPY002
            "two different batches for step 0, .* is handed",
        ),
        (lambda count: (torch.zeros(count, 2), torch.zeros(count)), r"received one with the arguments \(count\)"),
        (mf.Teacher, r"received the class Teacher; give one made of it, Teacher\(..\)"),
    ],
)
def test_laws_that_give_no_samples_are_refused(law, message):
    with pytest.raises(ValueError, match=message):
        mf.stream(law)


def test_a_law_that_changes_its_shape_is_refused():
    stream = mf.stream(
        lambda count, g: (torch.rand(count, 2 if count > 3 else 4, generator=g), torch.ones(count)), 4, 4
    )
    with pytest.raises(
        ValueError, match=r"gave x and y of the shapes \(\(4,\), \(1,\)\) in step 0 and \(\(2,\), \(1,\)\)"
    ):
        FiniteWidth(4)(replace(PROBLEM, data=replace(stream, batch=2)))


def test_a_law_that_fails_later_is_named_with_its_step():
    entropy = np.random.SeedSequence([0, 1, 1]).generate_state(1, np.uint64)[0] % 2**63

    def mine(count, generator):
        bad = generator.initial_seed() == int(entropy)
        return torch.full((count, 4), math.nan if bad else 1.0), torch.ones(count)

    with pytest.raises(ValueError, match="law of the stream 'mine' failed at step 1: x holds 12 value"):
        WassersteinFlow(64)(replace(PROBLEM, data=mf.stream(mine, 3, 4)))


def test_a_law_that_a_file_did_not_keep_is_why_solutions_cannot_be_compared(tmp_path):
    mine = replace(PROBLEM, data=mf.stream(lambda count, g: mf.Teacher(4, link="erf")(count, g), 3, 8))
    nets, limit = FiniteWidth(8).ensemble(mine, 2), WassersteinFlow(64)(mine)
    kept = mf.load(mf.save(limit, tmp_path / "limit.nc"))
    with pytest.raises(ValueError, match="law of the stream '<lambda>' is code of yours, which a file does not keep"):
        mf.deviation(nets, kept)
    given = replace(kept.problem, data=replace(kept.problem.data, law=mine.data.law))
    found = mf.deviation(nets, replace(kept, problem=given), names=("f",))
    assert found == mf.deviation(nets, limit, names=("f",))
    assert "mean over outputs at watched samples" in str(found)


def test_what_is_watched_is_called_so():
    plot, net = pytest.importorskip("meanfield.plot"), FiniteWidth(4)(PROBLEM)
    assert plot.loss(net).get_ylabel() == "watched loss, mean of 8 samples"
    assert plot.outputs(net, samples=(1,))[0].get_title() == "watched sample 1"
    with pytest.raises(ValueError, match=r"no test samples beside its watched ones, .* their .loss is the test loss"):
        _ = net.test_loss


def test_networks_with_settings_by_layer_say_that_they_keep_no_particles():
    own = replace(PROBLEM, network=mf.Architecture(mf.Network(1, "erf"), rate={"input": 0.5}))
    with pytest.raises(ValueError, match=r"finite networks with settings by layer, .* keep none"):
        FiniteWidth(4)(own).measure()
    assert WassersteinFlow(64)(own).measure().m.shape == (64,)


# -- directions of the deep sweep ----------------------------------------------------------------------------------------


def test_the_sweep_refuses_too_many_fresh_samples_before_work_and_says_what_to_do(monkeypatch):
    asked = replace(DEEP, training=mf.Training(0.1, 200))
    monkeypatch.setattr(CausalDMFT, "_run", lambda *_: pytest.fail("has begun"))
    with pytest.raises(
        ValueError, match=r"200 steps of 3 fresh samples, .* may span 608 .*samples=2048 or more, .* max_rank=256"
    ):
        CausalDMFT(1024)(asked)
    CausalDMFT(2048).check(asked)
    CausalDMFT(1024, max_rank=256).check(asked)
    CausalDMFT(64).check(replace(asked, network=mf.Network(1, "erf")))  # no matrix sees the samples
    huge = replace(asked, training=mf.Training(0.1, 10**8))
    with pytest.raises(MemoryError, match=r"a sweep with .* samples needs"):
        CausalDMFT(2**31).check(huge)


def test_directions_grow_by_the_samples_of_a_step_at_most_and_a_run_beyond_its_rank_keeps_what_it_has():
    many = mf.stream(mf.Teacher(40, link="tanh"), 4, 6)  # in 40 dimensions all fields are new ones
    asked = mf.Problem(many, mf.Network(2, "tanh"), training=mf.Training(0.2, 30, record_every=30))
    ranks = np.array(CausalDMFT(1024, snapshots=(), two_time=False)(asked).stats["ranks"])
    assert np.all(ranks <= 6 * 2 + 4 * 30)
    assert ranks.min() > 0.9 * (6 * 2 + 4 * 30)
    with pytest.raises(SolverError, match="max_rank, or what fits in memory, admits 64") as told:
        CausalDMFT(256, max_rank=64, snapshots=())(replace(asked, training=mf.Training(0.2, 30)))
    assert 0 < told.value.solution.steps < 30
    assert CausalDMFT(1024).estimate(asked, 0.2).seconds > 0
