"""N Var of modules from derivatives in the weights of neurons, and which modules have them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import meanfield as mf
from solvers import FiniteWidth, predicted_variance
from solvers.fluctuations import own_averages
from solvers.fluctuations.observed import Observables
from solvers.fluctuations.unrolled import Unrolled
from solvers.fluctuations.weighted_module import WeightedModule
from tests.any_networks import Convolutional, Language, Perceptron, Recurrent, Residual, digits, text


def asked(build, steps=3, kind="rows", **training):
    x, y = text() if kind == "text" else digits(6, kind == "images")
    loss = "cross_entropy" if kind == "text" else "squared"
    data = mf.Dataset(x[:4], y[:4], x[4:6], y[4:6])
    return mf.Problem(data, build, mf.mean_field(1.2), mf.Training(0.1, steps, **training), loss)


class Own(nn.Module):
    """Averages over neurons in its own code: a mean, a sum over n, a product of fields, einsum, attention, norms; weights
    in products
    """

    def __init__(self, n):
        super().__init__()
        self.read, self.mix = nn.Linear(64, n, bias=False), nn.Linear(n, n)
        self.out, self.n = nn.Linear(n, 1), n

    def forward(self, x):
        u = torch.tanh(self.read(x))
        h = torch.tanh(self.mix(u) + u.mean(-1, keepdim=True))
        h = h * (u @ h.mT / self.n).mean(1, keepdim=True) + (h * u).sum(1, keepdim=True) / self.n
        h = h + torch.einsum("bn,cn->b", h, u)[:, None] / self.n
        h = h + nn.functional.rms_norm(h, (self.n,)) * (u.norm(dim=1, keepdim=True) / self.n**0.5)
        rows = h.reshape(1, len(x), self.n)
        h = h + nn.functional.scaled_dot_product_attention(rows, rows, rows, scale=1 / self.n)[0]
        return torch.tanh(h @ self.mix.weight.T) @ self.out.weight.mT + self.out.bias


CASES = {
    "perceptron with biases": asked(lambda n: Perceptron(n, 64, bias=True)),
    "recurrent, momentum, decay": asked(Recurrent, momentum=0.5, weight_decay=0.3),
    "residual of twice the width": asked(Residual),
    "convolutional": asked(lambda n: Convolutional(n, torch.tanh), 2, "images"),
    "own averages": replace(asked(Own), training=mf.Training(0.01, 2)),
    "frozen bias of the readout": asked(mf.Architecture(lambda n: Perceptron(n, 64, bias=True), frozen=("out.bias",))),
    "frozen and slow": asked(
        mf.Architecture(Recurrent, frozen=("read",), rate={"out": 0.5}, decay={"again": 2.0}), weight_decay=0.3
    ),
}


def influences(problem, particles=256, tilt=None):
    """(observed, its derivatives in the weights of all neurons), or what is observed where they are moved by `tilt`"""
    network = WeightedModule(problem, particles, 0, 1e-2)
    observables = Observables(problem, ("f", "test_loss"), (0, 1, 4))
    unrolled = Unrolled(problem, network, network.initial_state, observables, (1, problem.training.steps))
    kept, found = unrolled.forward(1e9)
    if tilt is None:
        return torch.cat(found), unrolled.influences(kept, 0, sum(map(len, found)))
    network.back_to(kept[0].mark)
    with torch.no_grad():
        for m, t in zip(network.weights, tilt, strict=True):
            m += t
        return torch.cat(unrolled.seen())


@pytest.mark.parametrize("case", CASES)
def test_influences_are_finite_differences(case):
    """In directions of all weights at once, with the directions that the first way took"""
    problem, draw = CASES[case], torch.Generator().manual_seed(3)
    _, found = influences(problem)
    tilts = [torch.randn(one.shape[1], generator=draw, dtype=torch.float64) / one.shape[1] for one in found]
    along = sum(influence @ tilt for influence, tilt in zip(found, tilts, strict=True))
    eps = 1e-4
    plus, minus = (influences(problem, tilt=[s * eps * t for t in tilts]) for s in (1, -1))
    torch.testing.assert_close((plus - minus) / (2 * eps), along, rtol=1e-5, atol=1e-6 * float(along.abs().max()))


def test_a_perceptron_written_as_a_module_has_the_perceptrons_variance():
    """Two solvers that share no pass: within 4.5 errors of both, each below 3 %"""
    own = replace(asked(lambda n: Perceptron(n, 64)), training=mf.Training(0.3, 6), scaling=mf.mean_field(2.0))
    other = replace(own, network=mf.Network(2))
    one, two = (predicted_variance(p, 1024, groups=8, observed=("f", "f_test", "loss")) for p in (own, other))
    assert one.settings["method"] == "derivative"
    for name in ("f", "f_test", "loss"):
        a, b = (p.variance(name)[-1] for p in (one, two))
        error = (one.error(name)[-1].square() + two.error(name)[-1].square()).sqrt()
        assert float((error / b).max()) < 0.05
        assert float(((a - b).abs() / error).max()) < 4.5


@pytest.mark.parametrize("build", [Residual, Recurrent])
def test_trained_networks_have_the_predicted_variance(build):
    """160 networks of width 192: outputs within 4.5 standard errors and O(1/N)"""
    problem = replace(asked(build, 4), training=mf.Training(0.05, 4))
    found = predicted_variance(problem, 2**11, groups=4)
    nets = FiniteWidth(192, dtype="float32", snapshots=()).ensemble(problem, 160)
    final = torch.stack([torch.cat([s.f[-1], s.f_test[-1]]) for s in nets]).double()
    ratio = 192 * final.var(0) / torch.cat([found.train, found.test])
    errors = torch.cat([found.error("f")[-1] / found.train, found.error("f_test")[-1] / found.test])
    z = (ratio - 1) / (errors.square() + 2 / 159).sqrt()
    assert float(z.abs().max()) < 4.5


def test_twice_as_many_neurons_fluctuate_half_as_much():
    """f_0 = <a phi>/gamma0 over 2n neurons and a bias of torch's own, uniform within (2n)^(-1/2): n Var = <phi^2>/(2 gamma0^2) + 1/6"""
    build = lambda n: nn.Sequential(nn.Linear(64, 2 * n, bias=False), nn.Tanh(), nn.Linear(2 * n, 1))  # noqa: E731
    problem = asked(build, 0)
    found = predicted_variance(problem, 2**12)
    assert found.parts == ("neurons of all layers",)
    g = torch.randn(2**18, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    phi = torch.tanh(g @ problem.data.x.double().T / 8)
    torch.testing.assert_close(found.train[:, 0], phi.square().mean(0) / 2 / 1.2**2 + 1 / 6, rtol=0.02, atol=0)
    nets = FiniteWidth(32, snapshots=()).ensemble(problem, 400)
    seen = 32 * torch.stack([s.f[0] for s in nets]).double().var(0)
    assert float((seen / found.train - 1).abs().max()) < 4.5 * (2 / 399) ** 0.5


class Heads(nn.Module):
    """Norms of four heads"""

    def __init__(self, n):
        super().__init__()
        self.read, self.out = nn.Linear(64, n, bias=False), nn.Linear(n, 1, bias=False)

    def forward(self, x):
        heads = torch.tanh(self.read(x)).reshape(len(x), 4, -1)
        return self.out((heads * heads.square().mean(-1, keepdim=True)).flatten(1))


class Beside(nn.Module):
    """Two fields put beside each other"""

    def __init__(self, n):
        super().__init__()
        self.one, self.two = nn.Linear(64, n, bias=False), nn.Linear(64, n, bias=False)
        self.mix, self.out = nn.Linear(2 * n, n, bias=False), nn.Linear(n, 1, bias=False)

    def forward(self, x):
        return self.out(torch.tanh(self.mix(torch.tanh(torch.cat([self.one(x), self.two(x)], 1)))))


class Turned(nn.Module):
    """A matrix used transposed"""

    def __init__(self, n):
        super().__init__()
        self.read, self.mix, self.out = nn.Linear(64, n), nn.Linear(n, n, bias=False), nn.Linear(n, 1)

    def forward(self, x):
        return self.out(torch.tanh(torch.tanh(self.read(x)) @ self.mix.weight))


class Deviations(nn.Module):
    """A norm of its own that is none of torch's layers"""

    def __init__(self, n):
        super().__init__()
        self.read, self.out = nn.Linear(64, n), nn.Linear(n, 1)

    def forward(self, x):
        h = self.read(x)
        return self.out(torch.tanh(h / h.std(-1, keepdim=True)))


class Gated(Deviations):
    """The same, behind a gate that starts at 0"""

    def __init__(self, n):
        super().__init__(n)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        h = self.read(x)
        return self.out(torch.tanh(h + self.gate * h / h.std(-1, keepdim=True)))


class Named(Deviations):
    """An argument by a name that no rule knows"""

    def forward(self, x):
        h = self.read(x)
        return self.out(torch.tanh(h + torch.mean(input=h, dim=-1, keepdim=True)))


@pytest.mark.parametrize("build", [Heads, Beside, Turned, Deviations, Gated, Named])
def test_modules_that_do_more_with_their_neurons_are_asked_as_networks(build):
    problem = asked(build, 1)
    with pytest.raises(
        ValueError, match=r"weighs the neurons of a module .* Received one that uses them in another way"
    ):
        predicted_variance(problem, method="derivative")
    with pytest.raises(ValueError, match="networks are trained because of a module that does more with its neurons"):
        predicted_variance(problem, particles=512)
    assert predicted_variance(problem, width=16, networks=40).settings["method"] == "networks"


@pytest.mark.parametrize(
    ("build", "kind", "rule"),
    [
        (Residual, "rows", "layer_norm"),
        (Language, "text", "matmul"),
        *(
            (Own, "rows", rule)
            for rule in ("mean", "sum", "einsum", "rms_norm", "norm", "scaled_dot_product_attention")
        ),
    ],
)
def test_each_average_is_weighted(build, kind, rule, monkeypatch):
    """With its rule a module is followed, without it is not"""
    problem = asked(build, 1, kind)
    assert own_averages.own_averages(problem)
    monkeypatch.delitem(own_averages._RULES, rule)
    with pytest.raises(ValueError, match="weighs the neurons"):
        own_averages.own_averages(problem)


def test_kinks_and_other_laws_are_asked_as_networks():
    for build, why in (
        (Convolutional, "a module with kinks"),
        (mf.Architecture(Recurrent, initial_law="uniform"), "does not start as Gaussian numbers"),
    ):
        problem = asked(build, 1, "images" if build is Convolutional else "rows")
        with pytest.raises(ValueError, match=f"follows smooth networks by gradient_descent: received .*{why}"):
            predicted_variance(problem, method="derivative")


def test_kernels_of_modules_are_refused_by_name():
    for name in ("Phi[again]", "tangent_kernel"):
        with pytest.raises(ValueError, match=r"of modules outputs and losses are predicted, no kernels: received"):
            predicted_variance(CASES["recurrent, momentum, decay"], observed=(name,))


def test_many_numbers_of_a_module_are_asked_of_networks():
    problem = asked(Language, 1, "text")
    assert predicted_variance(problem, 192, observed=("loss",), groups=1).settings["method"] == "derivative"
    with pytest.raises(ValueError, match="because of the 624 numbers of a module, each of which costs a derivative"):
        predicted_variance(problem, particles=64)


class Started(nn.Module):
    """A vector or a number that starts as `start` gives it"""

    def __init__(self, n, start):
        super().__init__()
        self.read, self.out, self.v = nn.Linear(64, n), nn.Linear(n, 1), nn.Parameter(start(n))

    def forward(self, x):
        return self.out(torch.tanh(self.read(x))) + self.v.square().mean()


def test_fixed_numbers_of_neurons_are_no_draws_of_theirs():
    fixed = asked(lambda n: Started(n, lambda n: torch.linspace(-5, 5, n)), 1)
    with pytest.raises(ValueError, match="received 'v', which starts with fixed numbers, another for each neuron"):
        predicted_variance(fixed, method="derivative")
    drawn = predicted_variance(asked(lambda n: Started(n, torch.randn), 0), observed=("loss",))
    assert drawn.settings["method"] == "derivative"


def test_random_numbers_of_no_neuron_are_warned_of():
    with pytest.warns(RuntimeWarning, match="'v' of no neuron start at random in each network"):
        predicted_variance(asked(lambda n: Started(n, lambda n: torch.randn(1)), 0), particles=64)


@pytest.mark.parametrize(
    "phi", [lambda h: h * (h > 0), lambda h: torch.stack([h, 0 * h]).amax(0), lambda h: h - 0.1 * h.floor()]
)
def test_kinks_of_own_code_are_seen(phi):
    assert asked(lambda n: Perceptron(n, 64, phi=phi), 1).has_kinks
    assert not asked(Language, 1, "text").has_kinks  # whose mask compares positions


def test_layers_of_too_many_directions_are_asked_as_networks():
    """Of its own accord; with as many particles as were asked for it is refused"""
    x = torch.randn(520, 4, generator=torch.Generator().manual_seed(0))
    build = lambda n: nn.Sequential(nn.Linear(4, n), nn.Softplus(), nn.Linear(n, n), nn.Softplus(), nn.Linear(n, 1))  # noqa: E731
    problem = mf.Problem(mf.Dataset(30 * x, torch.sign(x[:, :1])), build, mf.mean_field(1.0), mf.Training(0.01, 1))
    found = predicted_variance(problem, observed=("loss",), tolerance=1e-9, width=None)
    assert "by networks (networks=400, width=256), because of the directions of a layer" in str(found)
    with pytest.raises(ValueError, match=r"beyond half of particles=512: take particles=.*or method='networks'"):
        predicted_variance(problem, 512, observed=("loss",), tolerance=1e-9)


def test_points_must_hold_samples_of_what_is_asked():
    problem = CASES["residual of twice the width"]
    for points, name in (((4, 5), "f"), ((0,), "f_test")):
        with pytest.raises(ValueError, match=f"points must hold a sample at which .*{name}.* is known"):
            predicted_variance(problem, points=points, observed=(name,))
