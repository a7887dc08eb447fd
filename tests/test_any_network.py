"""Networks written as torch modules, asked as problems: their limit, their finite widths, their files."""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow, width_sweep
from tests import any_networks
from tests.any_networks import Filtered, Recurrent, Residual, digits


def problem(network=Residual, steps=8, images=False, samples=6, **asked):
    x, y = digits(samples + 4, images)
    data = mf.Dataset(x[:samples], y[:samples], x[samples:], y[samples:])
    return mf.Problem(data, network, mf.mean_field(1.0), mf.Training(0.2, steps), **asked)


class Linear(nn.Module):
    """A residual network of linear layers, which is a perceptron"""

    def __init__(self, n):
        super().__init__()
        self.read, self.mix, self.out = (nn.Linear(*sides, bias=False) for sides in ((64, n), (n, n), (n, 1)))

    def forward(self, x):
        h = self.read(x)
        return self.out(h + 0.5 * self.mix(h))


# -- what a problem takes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Residual(8), "one of a fixed width: received a Residual"),
        (lambda n: nn.Linear(64, 1), "no parameter of the network grows"),
        (
            lambda n: nn.Sequential(nn.Linear(64, n), nn.Tanh(), nn.Linear(n, 2)),
            r"same shape: received \(2,\) and \(1,\)",
        ),
        (
            lambda n: nn.Sequential(nn.Linear(64, n), nn.Softmax(-1), nn.Linear(n, 1)),
            "softmax along an axis of neurons",
        ),
        (lambda n: nn.Sequential(nn.Linear(64, n), nn.Dropout(), nn.Linear(n, 1)), "Dropout '1' has no width limit"),
        (lambda n: len(n), r"build\(192\) failed"),
    ],
)
def test_networks_without_a_limit_are_refused_when_the_problem_is_made(network, why):
    with pytest.raises(ValueError, match=why):
        problem(network)


class Narrow(torch.nn.Module):
    """Sixteen neurons in the middle, fewer in networks of less; an axis of a fifth of the width"""

    def __init__(self, n):
        super().__init__()
        m = min(n, 16)
        self.read, self.mix, self.out = (
            torch.nn.Linear(*sizes, bias=False) for sizes in ((64, n), (n, m), (m, n // 5))
        )
        self.last = torch.nn.Linear(n // 5, 1, bias=False)

    def forward(self, x):
        return self.last(torch.tanh(self.out(self.mix(torch.tanh(self.read(x))))))


def test_widths_and_samples_that_do_not_suit_the_builder_are_told_by_name():
    asked = problem(Narrow)
    with pytest.raises(
        ValueError,
        match=r"^samples must be a multiple of 5, since the network has an axis of n/5.*1024; give e.g. 1025",
    ):
        CausalDMFT(1024)(asked)
    with pytest.raises(ValueError, match=r"^the width must be a multiple of 5.*received 64; give e.g. 65"):
        FiniteWidth(64)(asked)
    with pytest.raises(
        ValueError, match=r"build\(10\) gives the shape \(10, 10\), but its axes are 16 x n at some widths"
    ):
        FiniteWidth(10)(asked)


def test_solvers_of_perceptrons_say_so():
    why = r"^WassersteinFlow takes perceptrons.*received the module 'Residual'.*CausalDMFT and TangentKernelLimit take any network"
    with pytest.raises(ValueError, match=why):
        WassersteinFlow(64)(problem(Residual))


def test_what_is_recorded_is_called_by_the_layers():
    asked = problem(Residual)
    assert asked.keys("Phi") == ["Phi[up.0]", "Phi[up.1]", "Phi[down.0]", "Phi[down.1]", "Phi[out]"]
    assert asked.keys("G") == ["G[read]", "G[up.0]", "G[up.1]", "G[down.0]", "G[down.1]"]
    assert asked.keys("h") == []
    for solver in (CausalDMFT(256), FiniteWidth(16)):
        solution = solver(asked)
        assert set(solution.kernels) == {*asked.keys("Phi", "G")}
        assert solution.tangent_kernel().shape == (6, 6)
        with pytest.raises(ValueError, match=r"no kernel 'Phi\[in\]': recorded are Phi\[up.0\]"):
            solution.kernels["Phi[in]"]


def test_networks_of_many_outputs_have_features_and_no_gradients():
    x, y = digits(6)

    def build(n):
        return nn.Sequential(nn.Linear(64, n), nn.Tanh(), nn.Linear(n, 20))

    asked = mf.Problem(mf.Dataset(x, y.expand(-1, 20)), build, mf.mean_field(1.0), mf.Training(0.1, 2))
    for solver in (CausalDMFT(512), FiniteWidth(48)):
        solution = solver(asked)
        assert {key.kind for key in solution.kernels} == {"Phi"}
        assert not solution.has_tangent


# -- the limit and the widths ------------------------------------------------------------------------------------------


def test_linear_modules_are_solved_exactly():
    """Against the closed system of the perceptron with beta / sqrt(2) = 0.5"""
    asked = problem(Linear)
    right = CausalDMFT()(problem(mf.Network(2, "linear", residual=0.5 * 2**0.5)))
    found = CausalDMFT(groups=3)(asked)
    assert asked.is_linear
    assert found.stats["exact"]
    torch.testing.assert_close(found.f, right.f, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.f_test, right.f_test, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.tangent_kernel(), right.tangent_kernel(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.kernels["Phi[out]"].at(), right.kernels["Phi2"].at(), rtol=1e-9, atol=1e-10)


def by_hand(net, x, y, steps, eta, gamma0):
    """f of an ordinary torch network (steps + 1, P): weights drawn as N(0, 1/fan-in), readouts divided by gamma0 sqrt(n), trained by
    torch's SGD with the rates of a feature-learning network, gamma0^2 n times those of these units"""
    n, fs = net.out.in_features, []
    groups = []
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear):
                scale = module.in_features**-0.5
                if module is net.out:
                    scale /= gamma0 * n**0.5
                module.weight.normal_().mul_(scale)
                groups.append({"params": [module.weight], "lr": eta * gamma0**2 * n * scale**2})
                if module.bias is not None:
                    module.bias.zero_()
    optimiser = torch.optim.SGD(groups, lr=0.1)
    for step in range(steps + 1):
        f = net(x)
        fs.append(f.detach()[:, 0])
        if step < steps:
            optimiser.zero_grad()
            (0.5 * (f - y).square()).mean().backward()
            optimiser.step()
    return torch.stack(fs)


class Plain(nn.Module):
    """Three layers with a skip and an average over four positions"""

    def __init__(self, n):
        super().__init__()
        self.read, self.mix, self.out = (
            nn.Linear(16, n, bias=False),
            nn.Linear(n, n, bias=False),
            nn.Linear(n, 1, bias=False),
        )

    def forward(self, x):
        h = torch.tanh(self.read(x.reshape(-1, 4, 16)))
        return self.out(torch.tanh(h + self.mix(h)).mean(1))


def test_networks_trained_by_a_loop_of_their_own_agree():
    """At width 512 with 24 networks of no code of this library, f within the error of their mean, and not with gamma0 of another size"""
    x, y = digits(6)
    data, steps, eta, gamma0 = mf.Dataset(x, y), 10, 0.2, 1.5
    torch.random.fork_rng()
    g = torch.random.get_rng_state()
    torch.random.manual_seed(0)
    nets = torch.stack([by_hand(Plain(512).double(), x, y, steps, eta, gamma0) for _ in range(24)])
    torch.random.set_rng_state(g)
    nets = nets - nets[:, :1]  # f(0) is random, of order 1/sqrt(n), and is no part of the limit
    error = float((nets.var(0) / 24).sum().sqrt())
    found = {}
    for gamma in (gamma0, 1.5 * gamma0):
        asked = mf.Problem(data, Plain, mf.mean_field(gamma), mf.Training(eta, steps))
        f = CausalDMFT(4096, groups=2)(asked).f[..., 0].double()
        found[gamma] = float((nets.mean(0) - f).norm())
    assert found[gamma0] < 3 * error
    assert found[1.5 * gamma0] > 6 * error


def test_a_sweep_over_widths_approaches_the_limit(tmp_path):
    asked = problem(Recurrent)
    nets = width_sweep(asked, (32, 128), 8, folder=tmp_path)
    again = width_sweep(asked, (32, 128), 8, folder=tmp_path)  # from the files
    report = mf.deviation(nets, [CausalDMFT(2048, seed=seed)(asked) for seed in (0, 1)])
    assert again == nets
    for name in ("f", "loss", "tangent_kernel", "Phi[again]", "Phi[out]", "G[again]", "G[read]"):
        small, large = report[name].deviation
        assert large < 0.75 * small  # by 1/sqrt(4) but for the noise of eight seeds each


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 2, 1, 1), (2, 3, 0, 1), (3, 2, 2, 2), (2, 4, 5, 1), (2, 1, 0, 3), (1, 2, 0, 1)],
)
def test_kernels_of_a_filter_are_over_the_positions_that_it_sees_in_their_order(kernel, stride, padding, dilation):
    """Of the inputs x_p . x_q / 2 in the exact limit; a network's, with rows in the same order, are near"""
    g = torch.Generator().manual_seed(3)
    x, y = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((3, 2, 7), (3, 1)))
    build = partial(Filtered, kernel_size=kernel, stride=stride, padding=padding, dilation=dilation)
    asked = mf.Problem(mf.Dataset(x, y), build, mf.mean_field(1.0), mf.Training(0.1, 2))
    line, ones = torch.zeros(1, 1, 7, requires_grad=True), torch.ones(1, 1, kernel)
    (slope,) = torch.autograd.grad(nn.functional.conv1d(line, ones, None, stride, padding, dilation).sum(), line)
    seen = x[..., slope[0, 0] != 0].mT.flatten(0, 1)
    limit, net = CausalDMFT(32)(asked), FiniteWidth(512, dtype="float32")(asked)
    assert {*limit.kernels} == {*asked.keys("Phi", "G")} == {*net.kernels}
    torch.testing.assert_close(limit.kernels["Phi[mix]"].at(0), seen @ seen.T / 2, rtol=1e-9, atol=1e-10)
    for key, kernels in limit.kernels.items():
        right = kernels.at()
        assert float((net.kernels[key].at() - right).norm()) < 4 / 512**0.5 * float(right.trace())


def test_kernels_of_a_strided_network_approach_those_of_the_limit():
    asked = problem(any_networks.Convolutional, 1, images=True, samples=2)
    nets = width_sweep(asked, (64, 1024), 3, FiniteWidth(dtype="float32", snapshots=(1,)))
    report = mf.deviation(nets, [CausalDMFT(2048, seed=seed, snapshots=(1,))(asked) for seed in (0, 1)])
    for name in ("Phi[mix]", "G[mix]", "Phi[out]", "G[read]"):
        small, large = report[name].deviation
        assert large < 0.4 * small  # by 1/4 but for the noise of three seeds each


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [CausalDMFT(128, groups=2), CausalDMFT(128, keep_state=True), FiniteWidth(16)])
def test_files_keep_all_but_the_code(solver, tmp_path):
    solution = solver(problem(Residual, 3))
    kept = mf.load(mf.save(solution, tmp_path / "run.nc"))
    assert kept == solution
    assert kept.problem.architecture.build is Residual
    assert mf.load(tmp_path / "run.nc", network=Residual) == solution


def test_a_file_asks_for_code_that_is_not_there_and_refuses_other_code(tmp_path, monkeypatch):
    asked = problem(mf.Architecture(Recurrent, weight_std={"again.*": 0.5}, frozen=("read.*",), name="mine"), 2)
    mf.save(FiniteWidth(16)(asked), path := tmp_path / "run.nc")
    assert mf.load(path).problem == asked
    with pytest.raises(
        ValueError,
        match=r"has other parameters.*received read.weight \(n x 64, input\) where the file has read.weight \(n x 8",
    ):
        mf.load(path, network=Linear)
    monkeypatch.setattr("meanfield.network.architecture._MADE", {})
    monkeypatch.delattr(any_networks, "Recurrent")
    with pytest.raises(
        ValueError,
        match=re.escape("'tests.any_networks:Recurrent' is code, which files do not hold: import the module"),
    ):
        mf.load(path)

    class Renamed(Recurrent):
        pass

    with pytest.warns(UserWarning, match="is not what it was when the result was saved"):
        assert mf.load(path, network=Renamed).problem.architecture.frozen == ("read.*",)


def test_builders_with_settings_are_told_apart():
    """By what a partial or an enclosing function gave them"""

    def of(phi):
        return lambda n: any_networks.Perceptron(n, 64, phi=phi)

    tanh, relu = (problem(of(phi)) for phi in (torch.tanh, torch.relu))
    assert tanh != relu
    assert tanh == problem(of(torch.tanh))
    tanh, relu = (problem(partial(any_networks.Perceptron, inputs=64, phi=phi)) for phi in (torch.tanh, torch.relu))
    assert tanh != relu
    assert tanh == problem(partial(any_networks.Perceptron, inputs=64, phi=torch.tanh))


# -- tensors that the user names -----------------------------------------------------------------------------------------


class Attending(nn.Module):
    """Four rows of sixteen pixels that look at each other"""

    def __init__(self, n):
        super().__init__()
        self.read, self.q, self.k = (
            nn.Linear(16, n, bias=False),
            nn.Linear(n, n, bias=False),
            nn.Linear(n, n, bias=False),
        )
        self.weights, self.out = nn.Softmax(-1), nn.Linear(n, 1, bias=False)

    def forward(self, x):
        h = torch.tanh(self.read(x.reshape(-1, 4, 16)))
        return self.out((self.weights(self.q(h) @ self.k(h).mT * 8 / h.shape[-1]) @ h).mean(1))


def size(net, x):
    return torch.tanh(net.read(x.reshape(-1, 4, 16))).square().mean(-1)


def test_named_tensors_are_kept_compared_pooled_and_saved(tmp_path):
    """Those of networks approach the limit's by 1/sqrt(N); what training does to them is seen"""
    asked = problem(mf.Architecture(Attending, record={"attention": "weights", "size": size}), 12)
    asked = mf.Problem(asked.data, asked.network, mf.mean_field(2.0), mf.Training(1.0, 12))
    limits = [CausalDMFT(2048, seed=seed, keep_state=True)(asked) for seed in (0, 1)]
    first, last = limits[0].recorded["attention"]
    assert limits[0].recorded["attention"].shape == (2, 6, 4, 4)
    assert limits[0].recorded["size"].shape == (2, 6, 4)
    torch.testing.assert_close(first.sum(-1), torch.ones(6, 4))
    torch.testing.assert_close(first, torch.full((6, 4, 4), 0.25), rtol=0, atol=0.06)  # q.k/n vanishes at the start
    assert float((last - first).abs().max()) > 0.02
    nets = width_sweep(asked, (64, 256), 8, folder=tmp_path)
    report = mf.deviation(nets, limits)
    for name in ("attention", "size"):
        small, large = report[name].deviation
        assert large < 0.75 * small
        assert mf.pooled(limits).standard_errors[name].shape == limits[0].recorded[name].shape
    kept = mf.load(mf.save(limits[0], tmp_path / "limit.nc"))
    assert kept == limits[0]
    half = replace(CausalDMFT(2048, keep_state=True), snapshots=(0,))(asked.with_steps(6))
    whole = CausalDMFT(2048, keep_state=True).resume(
        mf.load(mf.save(half, tmp_path / "half.nc"), network=asked.network), 6
    )
    torch.testing.assert_close(whole.recorded["attention"], limits[0].recorded["attention"], rtol=0, atol=0)


def test_a_network_of_which_nothing_is_trained_is_refused():
    with pytest.raises(ValueError, match=r"frozen=\('\*',\) leaves nothing of 'Attending' to train"):
        problem(mf.Architecture(Attending, frozen=("*",)))
    problem(mf.Architecture(Attending, frozen=("[!o]*",)))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (
            {"h": lambda net, x: net.q.weight},
            r"'h' must have one axis of neurons or none.*received the shapes \(96, 96\) and \(192, 192\)",
        ),
        (
            {"h": lambda net, x: net.read.weight},
            r"behind that of the samples: received the shapes \(96, 16\) and \(192, 16\)",
        ),
        ({"a": "attention"}, r"must be the path of a module: received 'attention'; known: read, q, k, weights, out"),
        ({"a": lambda net, x: 1}, "'a' must be a tensor of real numbers: received 1"),
        ({"two words": "weights"}, "must have words as names: received 'two words'"),
        ({"a": lambda net, x: net.read(x.float())}, r"record\['a'\].* fails .*Write x.to\(self.read.weight.dtype\)"),
        ({"a": lambda net, x: net.read(x[..., :2])}, r"record\['a'\].* linear was given .*'read.weight' \(96, 16\)"),
        ({"a": lambda net, x: x.nothing}, r"record\['a'\].* fails .*AttributeError"),
        ({"a": lambda net, x: x / (1 // 0)}, r"record\['a'\].* fails .*ZeroDivisionError"),
    ],
)
def test_what_cannot_be_recorded_is_refused_early(record, why):
    with pytest.raises(ValueError, match=why):
        problem(mf.Architecture(Attending, record=record))


def test_other_code_of_a_part_is_another_network(tmp_path, monkeypatch):
    """A class that a network uses, a default, a captured function: a folder of other code is refused, and a file of it is not equal"""

    class Part(nn.Module):
        def forward(self, h):
            return torch.tanh(h)

    class Other(Part):
        def forward(self, h):
            return torch.relu(h)

    def of(part):
        class Whole(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.read, self.part, self.out = nn.Linear(64, n), part(), nn.Linear(n, 1)

            def forward(self, x):
                return self.out(self.part(self.read(x)))

        return Whole

    assert problem(of(Part)) == problem(of(Part))
    assert problem(of(Part)) != problem(of(Other))
    assert problem(lambda n, part=Part: of(part)(n)) != problem(lambda n, part=Other: of(part)(n))
    width_sweep(problem(of(Part), 2), (8,), 2, folder=tmp_path)
    with pytest.raises(ValueError, match=r"another|code"):
        width_sweep(problem(of(Other), 2), (8,), 2, folder=tmp_path)


@pytest.mark.parametrize("name", ["f", "loss", "Phi1"])
def test_names_of_observables_are_not_for_recorded_tensors(name):
    with pytest.raises(ValueError, match=f"names that nothing else has: received '{name}'"):
        mf.Architecture(Attending, record={name: "weights"})


def test_a_folder_of_other_code_is_told_by_the_code(tmp_path, monkeypatch):
    def of(phi):
        return problem(lambda n: any_networks.Perceptron(n, 64, phi=phi), 1)

    def sweep(asked):
        return width_sweep(asked, (8,), 2, folder=tmp_path / "nets", progress=False)

    first = of(torch.tanh)
    sweep(first)
    assert len(sweep(of(torch.tanh))) == 2
    with pytest.raises(ValueError, match=r"another run: .*nc is of another network than '<lambda>', or of other code"):
        sweep(of(torch.relu))
    monkeypatch.setattr("meanfield.network.architecture._MADE", {})  # as in a process that never saw it
    with pytest.raises(
        ValueError, match=r"another run: .*'<lambda>', whose code is not that of '<lambda>' or cannot be"
    ):
        sweep(of(torch.relu))


def test_changed_code_is_told_once_for_a_folder(tmp_path, monkeypatch):
    width_sweep(problem(Recurrent, 1), (8,), 3, folder=tmp_path, progress=False)

    class Recurrent2(Recurrent):
        pass

    monkeypatch.setattr("meanfield.network.architecture._MADE", {})
    monkeypatch.setattr(any_networks, "Recurrent", Recurrent2)
    with pytest.warns(UserWarning, match="is not what it was") as told:
        kept = [mf.load(path) for path in sorted(tmp_path.glob("*.nc"))]
    assert len(kept) == 3
    assert len(told) == 1
