"""Activations: phi' is the derivative of phi, and both stay right from h = 0 to |h| = 1e4."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import special

import meanfield as mf
from meanfield.measures import reductions
from meanfield.network import activations

NAMES = activations.names()
POINTS = torch.linspace(-6.05, 6.05, 122, dtype=torch.float64)  # 0, where relu has its kink, is not among them


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(activations, "_KNOWN", dict(activations._KNOWN))


@pytest.mark.parametrize("name", NAMES)
def test_dphi_is_autograd_of_phi(name):
    act, h = mf.activation(name), POINTS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(act.phi(h).sum(), h)
    torch.testing.assert_close(act.dphi(POINTS), slope, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_dphi_is_the_central_difference_of_phi(name):
    """The error of a step e is e^2 + eps / e: 1e-10 at e = 1e-5."""
    act, e = mf.activation(name), 1e-5
    slope = (act(POINTS + e) - act(POINTS - e)) / (2 * e)
    torch.testing.assert_close(act.dphi(POINTS), slope, rtol=0, atol=1e-9)


LIMITS = {  # phi(-h), phi(h), phi'(-h), phi'(h) at h = 1e4
    "linear": (-1e4, 1e4, 1, 1),
    "tanh": (-1, 1, 0, 0),
    "relu": (0, 1e4, 0, 1),
    "erf": (-1, 1, 0, 0),
    "sigmoid": (0, 1, 0, 0),
    "softplus": (0, 1e4, 0, 1),
    "sin": (-math.sin(1e4), math.sin(1e4), math.cos(1e4), math.cos(1e4)),
    "gelu": (0, 1e4, 0, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LIMITS)
def test_right_at_huge_arguments(name, dtype):
    act, h = mf.activation(name), torch.tensor([-1e4, 1e4], dtype=dtype)
    found = torch.cat([act.phi(h), act.dphi(h)])
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.tensor(LIMITS[name], dtype=dtype), rtol=1e-6, atol=1e-6)


def test_every_activation_has_a_known_limit():
    assert set(LIMITS) == set(NAMES)


REFERENCES = {
    "softplus": lambda h: special.log1p(np.exp(h)),
    "sigmoid": special.expit,
    "erf": special.erf,
    "tanh": np.tanh,
    "gelu": lambda h: h * special.ndtr(h),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", REFERENCES)
def test_relative_accuracy_on_the_negative_side(name, dtype):
    """Small values keep their digits: tails are not differences of numbers near 1. Condition numbers here are below h^2 = 36."""
    h = -torch.linspace(0.01, 6, 50, dtype=dtype)
    exact = REFERENCES[name](h.double().numpy())
    found = mf.activation(name)(h).double().numpy()
    np.testing.assert_allclose(found, exact, rtol=100 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_kinks_are_where_dphi_jumps(name):
    act, below = mf.activation(name), torch.tensor([-1e-9], dtype=torch.float64)
    jump = (act.dphi(-below) - act.dphi(below)).item()
    assert act.kinks == (((0.0, 1.0),) if name == "relu" else ())
    assert jump == pytest.approx(sum(size for _, size in act.kinks), abs=1e-8)


@pytest.mark.parametrize("wrong", ["tahn", "", None, 3])
def test_an_unknown_name_is_answered_with_the_known_ones(wrong):
    with pytest.raises(ValueError, match="unknown activation") as error:
        mf.activation(wrong)
    assert all(name in str(error.value) for name in NAMES)


@pytest.mark.usefixtures("own_registry")
def test_a_registered_activation_serves_by_name():
    cube = mf.register_activation(mf.Activation("cube", lambda h: h**3, lambda h: 3 * h**2))
    assert mf.Network(activation="cube").nonlinearity is cube
    w = x = torch.full((1, 1), 2.0, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    assert reductions.outputs(one[:, None], w, one, x, mf.activation("cube")).item() == 64
    assert mf.register_activation(cube) is cube  # again, the same one


@pytest.mark.usefixtures("own_registry")
def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="'tanh' is taken"):
        mf.register_activation(mf.Activation("tanh", torch.sin, torch.cos))
    assert mf.activation("tanh")(torch.ones(1)).item() == pytest.approx(math.tanh(1), rel=1e-6)


def test_only_an_activation_can_be_registered():
    with pytest.raises(ValueError, match="new must be an Activation: received 'tanh'"):
        mf.register_activation("tanh")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", NAMES)
def test_pickling_gives_the_same_object(name):
    assert pickle.loads(pickle.dumps(mf.activation(name))) is mf.activation(name)


def test_an_unregistered_activation_is_pickled_with_its_functions():
    mine = pickle.loads(pickle.dumps(mf.Activation("mine", torch.sin, torch.cos, kinks=((1.0, 0.0),))))
    assert (mine.name, mine.phi, mine.dphi, mine.kinks) == ("mine", torch.sin, torch.cos, ((1.0, 0.0),))


# ---- activations of one's own, tried against autograd ----------------------------------------------------------------


def step(h):
    return (h > 0).to(h.dtype)


WRONG = {
    "not the derivative": (torch.tanh, lambda h: 1 - torch.tanh(h), (), "phi' .* is not the derivative of phi: at -.* autograd gives"),
    "twice the derivative": (torch.sin, lambda h: 2 * torch.cos(h), (), "is not the derivative of phi"),
    "wrong on one side": (torch.relu, lambda h: 0.1 + 0.9 * step(h), ((0.0, 0.9),), "at -8 it is 0.1, autograd gives 0"),
    "not pointwise": (lambda h: torch.softmax(h, -1), lambda h: 0 * h, (), "phi of .*mixes entries: at -8 it is .*, one by itself gives"),
    "numpy": (lambda h: np.tanh(np.asarray(h)), lambda h: 1 / torch.cosh(h) ** 2, (), "return a torch tensor: received ndarray"),
    "numpy on tensors": (np.tanh, lambda h: 1 / torch.cosh(h) ** 2, (), "fails with .*torch functions"),
    "detached": (lambda h: torch.tanh(h.detach()), lambda h: 1 / torch.cosh(h) ** 2, (), "cut off from autograd"),
    "a branch": (lambda h: h if h > 0 else 0 * h, step, (), "phi of .*fails with RuntimeError"),
    "a number": (torch.sin, lambda h: 1.0, (), "phi' of .*return a torch tensor: received float"),
    "a sum": (lambda h: h.sum(), torch.ones_like, (), r"must return the shape \(7, 11\) .*received \(\)"),
    "shape": (torch.sin, lambda h: torch.cos(h)[None], (), r"phi' of .*received \(1, 7, 11\)"),
    "float64 alone": (lambda h: h * torch.ones((), dtype=torch.float64).reshape(1), torch.ones_like, (), "dtype that it is given"),
    "boolean": (torch.relu, lambda h: h > 0, ((0.0, 1.0),), "phi' of .*received torch.bool"),
    "nan": (torch.sqrt, lambda h: 0.5 / torch.sqrt(h), (), "phi of .*must be finite: received nan"),
    "nan at 0": (lambda h: torch.sin(h), lambda h: torch.sin(2 * h) / (2 * torch.sin(h)), (), "phi' of .*finite: received nan"),
    "in place": (lambda h: h.relu_(), step, ((0.0, 1.0),), "changes its argument in place"),
    "no kink": (torch.relu, step, (), r"jumps by 1 at 0, which is not among its kinks.*kinks=\(\(0, 1\),\)"),
    "no kink at 0.3": (lambda h: (h - 0.3).relu(), lambda h: step(h - 0.3), (), r"kinks=\(\(0.3, 1\),\)"),
    "a wrong jump": (torch.relu, step, ((0.0, 2.0),), "does not jump by 2 at its kink 0: it goes from 0 to 1"),
    "a kink elsewhere": (torch.relu, step, ((0.0, 1.0), (1.0, 1.0)), "does not jump by 1 at its kink 1"),
    "beyond a kink": (torch.relu, lambda h: torch.where(h == 0, 3.0, step(h)), ((0.0, 1.0),), "is 3 at its kink 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_piece_is_refused_when_it_is_made(case):
    phi, dphi, kinks, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        mf.Activation("mine", phi, dphi, kinks=kinks)
    assert "'mine'" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_right_pieces_pass_in_every_mode(name, mode):
    known = mf.activation(name)
    with mode():
        again = mf.Activation("mine", known.phi, known.dphi, kinks=known.kinks)
    assert again.dphi is known.dphi


@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0])
def test_a_kink_may_have_the_slope_of_either_side(at_zero):
    mf.Activation("mine", torch.relu, lambda h: torch.where(h == 0, at_zero, step(h)), kinks=((0.0, 1.0),))
    mf.Activation("abs", torch.abs, torch.sign, kinks=((0.0, 2.0),))
    mf.Activation("steep", lambda h: torch.tanh(300 * h), lambda h: 300 / torch.cosh((300 * h).clamp(-40, 40)) ** 2)
