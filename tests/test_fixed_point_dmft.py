"""The fixed point over the whole window agrees with the causal march, which knows nothing of it, and certifies its solutions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.solution.solution import Status
from meanfield.solution.two_time import TwoTimeKernel
from solvers import CausalDMFT, NonFiniteError, SolverError, WassersteinFlow
from solvers.dmft import certificate
from solvers.dmft.certificate import Certificate, residual
from solvers.dmft.fixed_point_dmft import FixedPointDMFT
from tests.accuracy.certificates import WithoutResponses

STEPS, SAMPLES, SEEDS = 10, 2048, 4


def problem(depth=2, activation="tanh", steps=STEPS, eta=0.2, n_test=2, classes=(0, 1), **network):
    data = mf.digits(classes, n_train=4, n_test=n_test)
    net = mf.Network(depth, activation, **network)
    return mf.Problem(data, net, mf.mean_field(1.0), mf.Training(eta, steps))


def observables(solution):
    kernels = {name: torch.stack([k.at(STEPS, 7), k.at(4, 4)]).double() for name, k in solution.kernels.items()}
    found = kernels | {"f": solution.f.double(), "tangent": solution.tangent_kernels[-1].double()}
    return found if solution.f_test is None else found | {"f_test": solution.f_test.double()}


def distances(ones, others):
    """|mean - mean| of each observable in units of the combined standard error"""
    found = {}
    for name in observables(ones[0]):
        a, b = (torch.stack([observables(s)[name] for s in seeds]) for seeds in (ones, others))
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sum().sqrt()
        found[name] = float((a.mean(0) - b.mean(0)).norm() / error)
    return found


def marched(asked, samples=4096):
    return [CausalDMFT(samples=samples, seed=seed, tolerance=3e-3)(asked) for seed in range(SEEDS)]


def iterated(asked, solver=FixedPointDMFT, **settings):
    found = [solver(samples=SAMPLES, seed=seed, **settings)(asked) for seed in range(SEEDS)]
    assert all(s.status is Status.CONVERGED for s in found)
    return found


@pytest.fixture(scope="module")
def two_layers():
    """The tanh problem of depth 2 and its marched solutions"""
    asked = problem()
    return asked, marched(asked)


@pytest.mark.parametrize(
    ("depth", "steps", "classes", "std"),
    [(1, 20, (0, 1), 1.0), (2, 20, (0, 1), 1.2), (3, 10, (0, 1), 1.0), (2, 10, (0, 1, 2), 1.0)],
)
def test_linear_networks_agree_with_the_march_exactly(depth, steps, classes, std):
    asked = problem(depth, "linear", steps, classes=classes, weight_std=std)
    march, fixed = CausalDMFT(samples=512)(asked), FixedPointDMFT(iterations=300)(asked)
    assert fixed.status is Status.CONVERGED
    for name in ("f", "f_test", "tangent_kernels"):
        torch.testing.assert_close(getattr(fixed, name), getattr(march, name), rtol=1e-8, atol=1e-8)
    for name, kernel in march.kernels.items():
        for t, s in ((steps, 3), (5, 5), (0, steps)):
            torch.testing.assert_close(fixed.kernels[name].at(t, s), kernel.at(t, s), rtol=1e-8, atol=1e-8)
    found = residual(march)
    assert max(found.residuals.values()) < 1e-10, found
    assert found.steps == steps


def test_mini_batches():
    asked = replace(problem(2, "linear"), training=mf.Training(0.2, STEPS, batch_size=2))
    march, fixed = CausalDMFT(samples=512)(asked), FixedPointDMFT()(asked)
    torch.testing.assert_close(fixed.f, march.f, rtol=1e-8, atol=1e-8)
    assert float((fixed.f - FixedPointDMFT()(problem(2, "linear")).f).abs().max()) > 1e-3


def test_two_layers_agree_with_the_march(two_layers):
    asked, march = two_layers
    found = distances(iterated(asked), march)
    assert max(found.values()) < 4, found


def test_three_layers_agree_with_the_march():
    asked = problem(3)
    found = distances(iterated(asked), marched(asked))
    assert max(found.values()) < 4, found


def test_several_outputs_another_loss_and_weight_std():
    asked = replace(problem(classes=(0, 1, 2), weight_std=1.3, n_test=0), loss="cross_entropy")
    found = distances(iterated(asked), marched(asked))
    assert max(found.values()) < 4, found


def test_kinks():
    asked = problem(activation="relu")
    found = distances(iterated(asked), marched(asked))
    assert max(found.values()) < 4, found


def test_without_responses_the_answer_is_wrong(two_layers):
    asked, march = two_layers
    wrong = iterated(asked, WithoutResponses)
    found = distances(wrong, march)
    assert found["f"] > 20, found
    f = [torch.stack([s.f for s in seeds]).double().mean(0) for seeds in (wrong, march)]
    assert float((f[0] - f[1]).norm() / f[1].norm()) > 0.1


def test_depth_one_agrees_with_the_flow_of_the_measure():
    asked = problem(1)
    flows = [WassersteinFlow(2**12, seed=seed, snapshots=range(STEPS + 1))(asked) for seed in range(SEEDS)]
    found = distances(iterated(asked), flows)
    assert max(found.values()) < 4, found


def test_the_outputs_start_at_zero_and_seeds_repeat():
    asked = problem(steps=3)
    one = FixedPointDMFT(samples=512, seed=3)(asked)
    assert float(one.f[0].abs().max()) < 1e-12
    assert one == FixedPointDMFT(samples=512, seed=3)(asked)
    assert one != FixedPointDMFT(samples=512, seed=4)(asked)


def test_anderson_needs_fewer_iterations_for_the_same_answer():
    asked = problem(steps=5)
    plain, fast = (FixedPointDMFT(samples=512, tolerance=1e-6, anderson=depth)(asked) for depth in (0, 5))
    assert fast.stats["iterations"] < plain.stats["iterations"]
    torch.testing.assert_close(fast.f, plain.f, rtol=1e-4, atol=1e-5)


def scaled(solution, names, factor):
    kernels = {
        name: TwoTimeKernel(k.steps, k.factor * (factor**0.5 if name in names else 1))
        for name, k in solution.kernels.items()
    }
    return replace(solution, kernels=kernels)


def worst(found):
    """The largest residual in units of what the certificate allows"""
    return max(found.residuals[name] / found.floors[name] for name in found.residuals) / found.limit


def test_certificate_of_a_march_and_of_corrupted_ones():
    march = CausalDMFT(samples=4096)(problem())
    found = residual(march, steps=-1)
    assert found.consistent, found
    assert set(found.residuals) == {"Phi1", "Phi2", "G1", "G2", "f"}
    for names in (("Phi1", "Phi2", "G1", "G2"), ("G1",), ("Phi2",)):
        assert not residual(scaled(march, names, 1.1), samples=2048, steps=5).consistent, names
    wrong = residual(replace(march, f=march.f * 1.1), steps=5)
    assert not wrong.consistent
    assert "NOT consistent" in str(wrong)


def test_certificate_of_a_solution_without_responses():
    """On the whole window and on a short one"""
    wrong, right = WithoutResponses(samples=SAMPLES)(problem()), FixedPointDMFT(samples=SAMPLES)(problem())
    for steps in (-1, 3):
        assert not residual(wrong, steps=steps).consistent
        assert residual(right, steps=steps).consistent


def test_a_good_solution_fails_its_certificate_as_often_as_it_says():
    """P = D = 1, where noise has few directions: of 12 solutions at most one may fail at a level of 1 % (two: one test in 160)."""
    data = mf.Dataset(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    asked = mf.Problem(data, mf.Network(2, "tanh"), mf.mean_field(1.0), mf.Training(0.3, 2))
    found = [residual(CausalDMFT(256, seed=s, tolerance=1e-3)(asked), seed=s, steps=-1) for s in range(12)]
    assert sum(worst(c) > 1 for c in found) <= 1, [worst(c) for c in found]


@pytest.mark.parametrize(("names", "draws"), [(1, 4), (5, 8), (7, 8), (9, 20)])
def test_the_limit_of_a_certificate_holds_for_noise_in_one_direction(names, draws):
    """Gaussian numbers in place of kernels, each with its floor from its own draws, as far apart as the certificate assumes"""
    rng = np.random.default_rng(names)
    limit = Certificate(dict.fromkeys(map(str, range(names)), 1.0), {}, 100, draws, 1, 1).limit
    images, own = rng.normal(size=(100_000, names, draws)), rng.normal(size=(100_000, names))
    ratio = np.abs(images.mean(2) - own) / (images.std(2, ddof=1) * np.sqrt(1 + 1 / draws))
    alarms = float((ratio.max(1) > limit).mean())
    assert (
        0.0087 < alarms < 0.0112
    )  # the level, less the little that Bonferroni gives away, within four standard errors


def test_certificate_reads_as_a_table():
    lines = str(Certificate({"Phi1": 0.01, "f": 0.002}, {"Phi1": 0.005, "f": 0.002}, 100, 8, 3, 9)).splitlines()
    assert len(lines) == 5
    assert lines[0] == "certificate of steps 0 to 3 of 9, 8 draws of 100 samples:"
    assert lines[-1].startswith("consistent: every ratio is below 4.0")  # t of 7 degrees of freedom at 0.25 %
    assert not Certificate({"f": float("nan")}, {"f": 1.0}, 100, 8, 3, 9).consistent


def test_certificate_takes_a_window_that_costs_no_more_than_the_run(monkeypatch):
    march = CausalDMFT(samples=512)(problem(steps=12))
    monkeypatch.setattr(certificate, "by_law", lambda run, most, seconds: (np.arange(most + 1) ** 2.0 / 8, most))
    for seconds, steps in ((0.1, 3), (30.0, 5), (1e6, 12)):  # at least ten seconds
        plan = certificate.planned(replace(march, stats={"seconds": seconds}))
        assert (plan.steps, plan.seconds) == (steps, steps**2.0)
        assert f"steps 0 to {steps} of 12 (8 draws of 512 samples): about" in str(plan)
    few = certificate.planned(march, samples=100, steps=None)
    assert few.steps <= 5  # 100 samples serve 50 Gaussians: 8 a step
    assert residual(march, steps=2).steps == 2


def test_certificates_that_cannot_be_are_refused_in_their_own_name(monkeypatch):
    monkeypatch.setattr(certificate.Window, "image", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=r"certificate needs the kernels at all steps.*two_time=True"):
        residual(CausalDMFT(samples=512, two_time=False)(problem(steps=3)))
    for asked in (problem(steps=2, bias_std=0.5), problem(steps=2, residual=1.0)):
        with pytest.raises(ValueError, match=r"the certificate tests networks without biases.*received"):
            residual(CausalDMFT(samples=512)(asked))
    for extra in ({"momentum": 0.5}, {"weight_decay": 0.1}, {"optimiser": "gradient_flow"}):
        asked = replace(problem(), training=mf.Training(0.2, 2, **extra))
        with pytest.raises(ValueError, match=f"the certificate tests .*received {next(iter(extra))}="):
            residual(CausalDMFT(samples=512)(asked))
    march = CausalDMFT(samples=512)(problem(steps=3))
    with pytest.raises(ValueError, match="steps=4 is beyond the solution, which has 3"):
        residual(march, steps=4)
    with pytest.raises(ValueError, match=r"a certificate of steps 0 to 3 needs at least 64 samples.*received 40"):
        residual(march, samples=40, steps=3)


def test_not_converged():
    with pytest.raises(SolverError, match=r"not converged: raise iterations.*CausalDMFT.*still moved by") as error:
        FixedPointDMFT(samples=512, iterations=2, damping=0.1, anderson=0)(problem(steps=4))
    assert error.value.solutions[0].status is Status.NOT_CONVERGED
    quiet = FixedPointDMFT(samples=512, iterations=2, raise_on_failure=False)(problem(steps=4))
    assert quiet.status is Status.NOT_CONVERGED
    assert quiet.steps == 4


def test_non_finite():
    asked = problem(3, "linear", eta=1e3)
    with pytest.raises(NonFiniteError, match=r"non-finite.*CausalDMFT") as error:
        FixedPointDMFT(damping=1.0, anderson=0)(asked)
    solution = error.value.solutions[0]
    assert solution.status is Status.NON_FINITE
    assert bool(torch.isfinite(solution.f).all())


def test_refusals():
    for asked in (problem(bias_std=0.5), problem(residual=1.0)):
        with pytest.raises(ValueError, match="CausalDMFT"):
            FixedPointDMFT()(asked)
    with pytest.raises(ValueError, match="gradient_descent"):
        FixedPointDMFT()(replace(problem(), training=mf.Training(0.2, 10, "gradient_flow")))
    for extra in ({"momentum": 0.5}, {"weight_decay": 0.1}):
        with pytest.raises(ValueError, match="CausalDMFT"):
            FixedPointDMFT()(replace(problem(), training=mf.Training(0.2, 10, **extra)))
    with pytest.raises(ValueError, match="no limit as a flow"):
        FixedPointDMFT()(replace(problem(), scaling=mf.ntk()))
    with pytest.raises(ValueError, match="too few"):
        FixedPointDMFT(samples=100)(problem())
    for wrong in ({"damping": 0.0}, {"damping": 1.5}, {"iterations": 0}, {"anderson": -1}, {"tolerance": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FixedPointDMFT(**wrong)
