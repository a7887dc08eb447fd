"""Averages over two Gaussians: closed forms, quadrature and the table of many pairs against each other and against identities."""

import math

import mpmath
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

import meanfield as mf
from meanfield.kernels.averages_table import prepared
from meanfield.kernels.gaussian_averages import closed_form, gaussian_averages, register_closed_form
from meanfield.kernels.gaussian_quadrature import Quadrature
from meanfield.network import activations

NAMES = activations.names()
CLOSED = ("linear", "relu", "erf", "sin", "gelu")


def covariances(scale, seed=0):
    """Of six points of unequal norms, two of them opposite in direction and two nearly the same"""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[3], x[4] = -1.3 * x[2], x[1] + 1e-3
    c = scale**2 * x @ x.T / 3
    return c.diagonal().clone(), c


def apart(found, expected):
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("scale", [0.3, 1.5])
@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_equal_quadrature(name, scale):
    p, c = covariances(scale)
    exact, numerical = gaussian_averages(name), gaussian_averages(name, quadrature=True)
    assert exact.exact
    assert not numerical.exact
    assert apart(exact.pair(p, p, c), numerical.pair(p, p, c)) < 1e-10
    assert apart(exact.single(p), numerical.single(p)) < 1e-10


@pytest.mark.parametrize("scale", [0.3, 1.5])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "gelu"])
def test_the_table_equals_quadrature_of_each_pair(name, scale):
    p, c = covariances(scale)
    source = Quadrature(mf.activation(name))
    assert apart(prepared(source, p, p, 10**6)(p, p, c), source.pair(p, p, c)) < 1e-12


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus"])
@pytest.mark.parametrize("width", [1e-12, 1e-6, 1e-3, 1e-2, 0.1, 0.5])
def test_the_table_of_many_deviations_in_a_narrow_range(name, width):
    """As they are in deep layers, where saturated activations bring all points to the same variance"""
    p = 0.3 * (1 + width * torch.linspace(0, 1, 300, dtype=torch.float64))
    some, c = p[[0, 77, 299]], 0.4 * (p[[0, 77, 299], None] * p[[0, 77, 299]]).sqrt()
    source = Quadrature(mf.activation(name))
    assert apart(prepared(source, p, p, 10**6)(some, some, c), source.pair(some, some, c)) < 1e-12


def test_the_table_between_its_nodes_and_at_zero_variance():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(300, 4, generator=g, dtype=torch.float64)
    x[7] = 0
    c = x @ x.T
    p = c.diagonal().clone()
    assert (
        apart(
            prepared(Quadrature(mf.activation("gelu")), p, p, 10**6)(p, p, c), gaussian_averages("gelu").pair(p, p, c)
        )
        < 1e-12
    )


def test_a_kink_away_from_zero_against_adaptive_integration():
    hard = mf.Activation(
        "hard tanh", lambda h: h.clamp(-1, 1), lambda h: (h.abs() < 1).to(h.dtype), kinks=((-1.0, 1.0), (1.0, -1.0))
    )
    p, q, c = (torch.tensor(v, dtype=torch.float64) for v in ([1.7], [0.8], [[0.9]]))

    def mean_given(u):
        """<clip(v)> at fixed u: clip(v) = relu(v + 1) - relu(v - 1) - 1"""
        mean, std = 0.9 / 1.7 * u, math.sqrt(0.8 - 0.9**2 / 1.7)
        ends = [(mean + k, (mean + k) / std) for k in (1, -1)]
        above, below = (m * norm.cdf(z) + std * norm.pdf(z) for m, z in ends)
        return above - below - 1

    def integrand(u):
        return min(1.0, max(-1.0, u)) * mean_given(u) * norm.pdf(u / math.sqrt(1.7)) / math.sqrt(1.7)

    found = Quadrature(hard).pair(p, q, c)[0].item()
    assert found == pytest.approx(quad(integrand, -14, 14, points=(-1, 1), epsabs=1e-12, limit=200)[0], abs=1e-10)


def leaky(above, below):
    return mf.Activation(
        "two lines",
        lambda h: torch.where(h > 0, above * h, below * h),
        lambda h: below + (above - below) * (h > 0).to(h.dtype),
        kinks=((0.0, above - below),),
    )


LINES = [(1.0, 0.01), (1.0, -1.0), (1.0, 0.3), (0.0, 0.7), (-2.0, 5.0), (1.4142135623730951, 0.0), (0.5, 0.5)]


@pytest.mark.parametrize("rho", [1.0, 0.999, 0.3, 0.0, -0.6, -1.0])
@pytest.mark.parametrize("slopes", LINES, ids=str)
def test_two_straight_lines_against_integrals_over_the_angle(slopes, rho):
    """phi is homogeneous, so that the radius of (u, v) is averaged over alone: 30 digits over the angle that remains"""
    above, below = (mpmath.mpf(v) for v in slopes)
    s, t, angle = mpmath.mpf(1.7), mpmath.mpf(0.4), mpmath.acos(rho)

    def phi(u):
        return above * u if u > 0 else below * u

    def slope(u):
        return above if u > 0 else below

    with mpmath.workdps(30):
        turns = sorted({mpmath.mpf(0), 2 * mpmath.pi, *((k * mpmath.pi / 2 + a) for k in (1, 3) for a in (0, angle))})
        ends = [v for v in turns if 0 <= v <= 2 * mpmath.pi] + [angle - mpmath.pi / 2] * (angle > mpmath.pi / 2)
        ends.sort()
        both = [mpmath.quad(lambda z, f=f: f(mpmath.cos(z)) * f(mpmath.cos(z - angle)), ends) for f in (phi, slope)]
        right = [float(s * t * both[0] / mpmath.pi), float(both[1] / (2 * mpmath.pi))]
    p, q = (torch.tensor([float(v) ** 2], dtype=torch.float64) for v in (s, t))
    averages = gaussian_averages(leaky(*slopes))
    assert averages.exact
    sizes = [float(s * t) * max(above**2, below**2), max(above**2, below**2)]
    for found, expected, size in zip(averages.pair(p, q, rho * (p * q).sqrt()[None]), right, sizes, strict=True):
        assert found.item() == pytest.approx(expected, abs=4e-15 * float(size))
    if rho == 1:
        for alone, together in zip(averages.single(p), averages.pair(p, p, p[None]), strict=True):
            assert alone.item() == pytest.approx(together.item(), rel=2e-15)


@pytest.mark.parametrize("slopes", LINES[:2], ids=str)
def test_two_straight_lines_equal_quadrature(slopes):
    p, c = covariances(1.5)
    exact, numerical = (gaussian_averages(leaky(*slopes), quadrature) for quadrature in (False, True))
    assert apart(exact.pair(p, p, c), numerical.pair(p, p, c)) < 1e-10
    assert apart(exact.single(p), numerical.single(p)) < 1e-10


@pytest.mark.parametrize(
    ("phi", "kinks"),
    [
        (lambda h: h.clamp(-1e6, 1e6), ((-1e6, 1.0), (1e6, -1.0))),
        (lambda h: torch.relu(h - 1e-5), ((1e-5, 1.0),)),
        (lambda h: torch.relu(h) + 1e-9, ((0.0, 1.0),)),
    ],
    ids=["bounded", "shifted", "raised"],
)
def test_what_is_nearly_two_straight_lines_has_no_closed_form(phi, kinks):
    def slope(h):
        with torch.enable_grad():
            at = h.detach().requires_grad_()
            return torch.autograd.grad(phi(at).sum(), at)[0]

    assert closed_form(mf.Activation("nearly", phi, slope, kinks=kinks, tried=True)) is None


@pytest.mark.parametrize("name", NAMES)
def test_the_slope_average_is_the_derivative_in_the_covariance(name):
    """Price's theorem, d <phi phi> / dc = <phi' phi'>, holds for every activation"""
    averages, step = gaussian_averages(name), 1e-4
    p, q = (torch.tensor([v], dtype=torch.float64) for v in (1.2, 0.7))
    c = torch.tensor([[0.4]], dtype=torch.float64)
    slope = (averages.pair(p, q, c + step)[0] - averages.pair(p, q, c - step)[0]) / (2 * step)
    assert slope.item() == pytest.approx(averages.pair(p, q, c)[1].item(), rel=1e-6)


def test_an_undeclared_kink_is_refused():
    with pytest.raises(ValueError, match="declare kinks"):
        Quadrature(
            mf.Activation("secret", lambda h: (h - 0.3).relu(), lambda h: (h > 0.3).to(h.dtype), tried=True)
        ).single(torch.ones(1, dtype=torch.float64))


def test_many_pairs_with_kinks_are_refused():
    hard = mf.Activation("hard", lambda h: h.clamp_min(-1), lambda h: (h > -1).to(h.dtype), kinks=((-1.0, 1.0),))
    with pytest.raises(ValueError, match="register_closed_form"):
        gaussian_averages(hard).prepare(torch.ones(1), torch.ones(1), 10**6)


def test_closed_forms_belong_to_one_activation():
    assert closed_form(mf.Activation("relu", torch.sin, torch.cos)) is None
    assert closed_form("tanh") is None
    with pytest.raises(ValueError, match="already"):
        register_closed_form("relu", lambda p, q, c: (c, c), lambda p: (p, p))
    with pytest.raises(ValueError, match="unknown activation"):
        register_closed_form("nothing", lambda p, q, c: (c, c), lambda p: (p, p))


def conditioned(f, s, t, rho):
    """<f(u) f(v)> by nested adaptive integration: u = s x, and v at fixed u is Gaussian"""
    wide, cuts = t * math.sqrt((1 - rho) * (1 + rho)), [10.0**k for k in range(-5, 2)]

    def near(scale):  # places around a steep one, in standard deviations
        return [side * cut for cut in cuts if cut > 0.1 / scale for side in (-1, 1)] + [0.0]

    def inner(x):
        mean = t * rho * x
        if not wide:
            return f(mean)
        steep = [y - mean / wide for y in near(wide)]
        points = [y for y in [*steep, -4.0, 0.0, 4.0] if -9 < y < 9]
        return quad(
            lambda y: f(mean + wide * y) * norm_pdf(y), -9, 9, points=points, epsabs=0, epsrel=1e-11, limit=200
        )[0]

    points = [x for x in near(max(s, t)) if -9 < x < 9]
    return quad(lambda x: f(s * x) * inner(x) * norm_pdf(x), -9, 9, points=points, epsabs=0, epsrel=1e-11, limit=200)[0]


def norm_pdf(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


PLAIN = {
    "tanh": (math.tanh, lambda h: 1 / math.cosh(max(-300.0, min(300.0, h))) ** 2),
    "softplus": (
        lambda h: max(h, 0.0) + math.log1p(math.exp(-abs(h))),
        lambda h: 1 / (1 + math.exp(-max(-700.0, min(700.0, h)))),
    ),
}
SPREADS = [
    (1e-3, 1e-3, 0.5), (1.0, 1.0, -0.9), (8.3, 8.3, 0.3), (25.0, 12.0, 0.99), (1e4, 1e4, 0.9999), (1e4, 1e4, -0.5),
    (1e-3, 1e4, 0.7), (1e3, 10.0, -0.99), (1e4, 1e4, 1.0), (300.0, 1e4, -1.0),
]  # fmt: skip


def own(name, kinks=()):
    """A library activation that nobody knows a closed form of"""
    known = mf.activation(name)
    return mf.Activation(f"my {name}", known.phi, known.dphi, kinks=kinks, tried=True)


@pytest.mark.filterwarnings(
    "ignore::scipy.integrate.IntegrationWarning"
)  # rounding where an odd function averages to almost 0
@pytest.mark.parametrize("spread", SPREADS, ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_averages_at_any_scale_against_nested_adaptive_integration(name, spread):
    """Relative to the size (<f(u)^2> <f(v)^2>)^1/2; the integration is asked for 1e-11"""
    s, t, rho = spread
    p, q = (torch.tensor([v * v], dtype=torch.float64) for v in (s, t))
    c = rho * p.sqrt()[:, None] * q.sqrt()
    source = Quadrature(mf.activation(name))
    both = zip(
        source.pair(p, q, c), prepared(source, p, q, 10**6)(p, q, c), source.single(p), source.single(q), strict=True
    )
    for f, (one, of_many, left, right) in zip(PLAIN[name], both, strict=True):
        exact, size = conditioned(f, s, t, rho), float((left * right).sqrt())
        assert one.item() == pytest.approx(exact, rel=0, abs=2e-11 * size)
        assert of_many.item() == pytest.approx(exact, rel=0, abs=2e-11 * size)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_sigmoid_is_a_shifted_tanh_at_any_scale(scale):
    """sigmoid(h) = [1 + tanh(h/2)]/2, and the odd part averages to 0"""
    p, c = covariances(scale)
    found = gaussian_averages("sigmoid").prepare(p, p, 10**6)(p, p, c)
    phi, slope = gaussian_averages("tanh").prepare(p / 4, p / 4, 10**6)(p / 4, p / 4, c / 4)
    assert apart(found, ((1 + phi) / 4, slope / 16)) < 1e-11


@pytest.mark.parametrize("ends", [(0.3, 3.0), (20.0, 60.0)])
@pytest.mark.parametrize("name", ["erf", "gelu"])
def test_the_table_of_many_deviations_equals_closed_forms(name, ends):
    """Each entry relative to its size; what c loses to rounding changes slopes by p eps of themselves near correlations of 1"""
    s = torch.logspace(math.log10(ends[0]), math.log10(ends[1]), 300, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    rho = 1 - 10 ** (-8 * torch.rand(300, 300, generator=generator, dtype=torch.float64))
    rho = torch.where(torch.rand(300, 300, generator=generator) < 0.5, -rho, rho)
    p, c = s.square(), rho * s[:, None] * s
    found = prepared(Quadrature(own(name)), p, p, 10**6)(p, p, c)
    for a, b, one in zip(found, gaussian_averages(name).pair(p, p, c), gaussian_averages(name).single(p), strict=True):
        size = (one[:, None] * one).sqrt()
        assert float(((a - b).abs() / size).max()) < 1e-12 + 4 * ends[1] ** 2 * torch.finfo(torch.float64).eps


def test_an_own_activation_of_any_smooth_kind_is_averaged_at_any_scale():
    """h tanh(h) at u = v, by adaptive integration"""
    new = mf.Activation("h tanh", lambda h: h * torch.tanh(h), lambda h: torch.tanh(h) + h * (1 - torch.tanh(h) ** 2))
    for s in (1e-3, 2.0, 1e4):
        p = torch.tensor([s * s], dtype=torch.float64)
        exact = conditioned(lambda h: h * math.tanh(h), s, s, 1.0)
        assert gaussian_averages(new).single(p)[0].item() == pytest.approx(exact, rel=2e-11)


def test_a_kink_of_the_second_derivative_alone_is_declared_with_a_jump_of_0():
    def phi(h):
        return torch.where(h > 0, h, torch.expm1(h.clamp(max=0)))

    new = mf.Activation("elu", phi, lambda h: h.clamp(max=0).exp(), kinks=((0.0, 0.0),))
    plain = lambda h: h if h > 0 else math.expm1(h)  # noqa: E731
    p = torch.tensor([900.0], dtype=torch.float64)
    found = Quadrature(new).pair(p, p, 0.5 * p[None])[0].item()
    assert found == pytest.approx(conditioned(plain, 30.0, 30.0, 0.5), rel=2e-11)
    with pytest.raises(ValueError, match=r"'elu' do not converge .*declare kinks.*0 where only phi'' jumps"):
        gaussian_averages(mf.Activation("elu", phi, new.dphi)).single(p)


def test_what_oscillates_on_and_on_is_refused_at_large_deviations():
    new = mf.Activation("snake", lambda h: h + torch.sin(h) ** 2, lambda h: 1 + torch.sin(2 * h))
    p = torch.tensor([1.0, 4.0], dtype=torch.float64)
    assert torch.isfinite(gaussian_averages(new).prepare(p, p, 10)(p, p, p.diag())[0]).all()
    with pytest.raises(
        ValueError, match=r"'snake' do not converge .*up to 200.*register_closed_form.*smaller weight_std"
    ):
        gaussian_averages(new).single(1e4 * p)


@pytest.mark.parametrize("size", [1e-3, 0.5, 1e5])
@pytest.mark.parametrize("name", ["gelu", "erf"])
def test_closed_forms_at_equal_points_keep_their_digits(name, size):
    p = torch.tensor([size * size], dtype=torch.float64)
    found = gaussian_averages(name).single(p)
    assert apart(found, gaussian_averages(own(name)).single(p)) < 1e-13


@pytest.mark.parametrize("std", [1e-3, 30.0])
def test_deep_kernels_of_an_unknown_erf_equal_those_of_erf(std):
    """Any weight_std: closed forms in three layers. Rounding of h at correlation 1 grows by std^2, and only off the diagonal"""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found, right = (mf.nngp_and_ntk(mf.Network(3, phi, std, 0.1), mf.ntk(), x) for phi in (own("erf"), "erf"))
    for a, b in zip(found, right, strict=True):
        size = b.diagonal().sqrt()
        assert float(((a - b).abs() / size[:, None] / size).max()) < 1e-11
