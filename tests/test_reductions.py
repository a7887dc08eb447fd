"""The two sums of a two-layer network: three engines, one answer; the velocity is a gradient; little memory; a way out without KeOps."""

import subprocess
import sys
import threading
import time
import types
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import meanfield as mf
from meanfield.measures import keops, reductions, tiles
from meanfield.network import activations
from solvers import WassersteinFlow
from tests import memory
from tests.running import environment

CPU = torch.device("cpu")

N, P, D, C = 200, 11, 3, 2
GELU = mf.activation("gelu")
KEOPS = pytest.param("keops", marks=pytest.mark.keops)


@pytest.fixture(autouse=True)
def _fresh_caches():
    """No test sees the warnings and failures of another one."""

    def forget():
        for cached in vars(keops).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()
        keops._state["broken"] = False

    forget()
    yield
    forget()


@pytest.fixture(params=["one tile", "tiles of particles", "tiles of particles and of data"])
def tiling(request, monkeypatch):
    """Tiles hold all of N P = 2200 elements, or 11 data points and 64 particles, or 4 data points and 64 particles."""
    elements = {"one tile": 2**18, "tiles of particles": 11 * 64, "tiles of particles and of data": 256}[request.param]
    monkeypatch.setattr(tiles, "_CPU_TILE", 8 * elements)  # bytes


def _problem(n=N, p=P, d=D, c=C, dtype=torch.float64, seed=0):
    """a, w, m, x, delta"""
    g = torch.Generator().manual_seed(seed)
    a, w, x, delta = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((n, c), (n, d), (p, d), (p, c)))
    m = torch.rand(n, generator=g, dtype=torch.float64)
    return [t.to(dtype) for t in (a, w, m / m.sum(), x, delta)]


def _both(a, w, m, x, delta, activation, engine):
    """f, v_a, v_w"""
    return (
        reductions.outputs(a, w, m, x, activation, engine),
        *reductions.velocity(a, w, x, delta, activation, engine),
    )


def _by_the_formula(a, w, m, x, delta, activation):
    h = torch.einsum("rd,pd->rp", w, x)
    phi, slope = activation.phi(h), activation.dphi(h)
    f = torch.einsum("r,rc,rp->pc", m, a, phi)
    va = torch.einsum("pc,rp->rc", delta, phi) / len(x)
    return f, va, torch.einsum("pc,rc,rp,pd->rd", delta, a, slope, x) / len(x)


def _cotangent(results):
    """A scalar that depends on every entry of every result."""
    g = torch.Generator().manual_seed(1)
    return sum((r * torch.randn(r.shape, generator=g, dtype=torch.float64).to(r)).sum() for r in results)


# ---- three engines, one answer ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("engine", ["dense", "chunked", "auto", KEOPS])
def test_every_engine_sums_the_formula_and_its_gradients(engine):
    """f, v_a, v_w and the gradients of all of them with respect to a, w, m, x, delta, in float64."""
    tensors = [t.requires_grad_() for t in _problem()]
    found, exact = _both(*tensors, GELU, engine), _by_the_formula(*tensors, GELU)
    for f, e in zip(found, exact, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(_cotangent(results), tensors) for results in (found, exact)]
    for f, e in zip(*gradients, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("name", activations.names())
def test_every_activation_is_served_by_tiles(name):
    problem, act = _problem(), mf.activation(name)
    for f, e in zip(_both(*problem, act, "chunked"), _by_the_formula(*problem, act), strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("wanted", ["a", "w", "m", "x", "delta"])
@pytest.mark.parametrize("engine", ["chunked", KEOPS])
def test_gradients_with_respect_to_one_tensor_alone(engine, wanted):
    """v_a does not depend on a: engines may not trip over a result without a gradient."""
    problem = dict(zip(("a", "w", "m", "x", "delta"), _problem(), strict=True))
    problem[wanted].requires_grad_()
    gradients = [
        torch.autograd.grad(_cotangent(results), problem[wanted])[0]
        for results in (_both(*problem.values(), GELU, engine), _by_the_formula(*problem.values(), GELU))
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("engine", ["dense", "chunked"])
def test_float32_is_float64_to_its_precision(engine):
    """Sums of N and P terms of either sign: an error of some eps times the sum of their sizes."""
    double, single = _problem(n=5000), _problem(n=5000, dtype=torch.float32)
    sizes = _by_the_formula(*(t.abs() for t in double), mf.activation("linear"))  # |tanh h| <= |h|, |tanh'| <= 1
    for s, d, size in zip(
        _both(*single, mf.activation("tanh"), engine), _both(*double, mf.activation("tanh"), engine), sizes, strict=True
    ):
        assert s.dtype == torch.float32
        assert ((s.double() - d).abs() <= 8 * torch.finfo(torch.float32).eps * size).all()


@pytest.mark.cuda
@pytest.mark.parametrize("engine", ["dense", "chunked", pytest.param("keops", marks=pytest.mark.keops)])
@pytest.mark.parametrize("name", ["tanh", "gelu", "relu"])
def test_cuda_gives_the_numbers_of_the_cpu(monkeypatch, name, engine):
    if engine == "keops" and keops.end_of_trial():
        pytest.skip("KeOps does not survive on this GPU")
    monkeypatch.setattr(tiles, "_CUDA_TILE", 2**17)  # several tiles
    act = mf.activation(name)
    here = [t.requires_grad_() for t in _problem(n=3000, p=300)]
    there = [t.detach().cuda().requires_grad_() for t in here]
    results = _both(*here, act, "dense"), _both(*there, act, engine)
    gradients = [
        torch.autograd.grad(_cotangent([r.cpu() for r in rs]), ts)
        for rs, ts in zip(results, (here, there), strict=True)
    ]
    for cpu, cuda in [*zip(*results, strict=True), *zip(*gradients, strict=True)]:
        assert cuda.is_cuda
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=0, atol=1e-10)


# ---- shapes of the work: few or many outputs, small or large D --------------------------------------------------------


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("name", ["tanh", "relu", "gelu"])
@pytest.mark.parametrize(("d", "c"), [(1, 1), (2, 1), (10, 3), (20, 3), (70, 1), (70, 2)])
def test_tiles_give_the_sums_at_few_and_many_outputs_and_inputs(name, d, c):
    """Delta inside the product or beside phi', sums as (D, N) or (N, D), v_a from w or by its own product."""
    problem, act = _problem(d=d, c=c), mf.activation(name)
    for f, e in zip(_both(*problem, act, "chunked"), _by_the_formula(*problem, act), strict=True):
        assert f.is_contiguous()
        torch.testing.assert_close(f, e, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("name", ["tanh", "relu", "gelu", "linear"])
@pytest.mark.parametrize(
    ("d", "c", "train"), [(3, 2, P), (130, 1, P), (130, 2, P), (130, 1, 7), (3, 1, 7), (130, 2, 1)]
)
@pytest.mark.parametrize("block", [4, 256])
@pytest.mark.parametrize("engine", ["auto", "dense", "chunked"])
def test_a_step_is_the_outputs_and_the_velocity_of_its_delta(monkeypatch, name, d, c, train, block, engine):
    """Delta = weights (y - f^3 / 3): not linear, and other for each point; points beyond `train` move nothing."""
    monkeypatch.setattr(tiles, "_BLOCK", block)
    (a, w, m, x, y), act, seen = _problem(d=d, c=c), mf.activation(name), []
    weights = torch.arange(1.0, 1 + P).double()[:, None]
    planes = 2 if name in ("gelu", "linear") else 1
    monkeypatch.setattr(tiles, "_KEPT", 8 * planes * len(w) * w.element_size())  # at small D: eight points

    def delta(f, rows):
        seen.append(rows.stop - rows.start)
        return weights[rows] * (y[rows] - f**3 / 3)

    found = reductions.step(a, w, m, x, delta, act, engine, train)
    f = _by_the_formula(a, w, m, x, y, act)[0]
    pulls = weights * (y - f**3 / 3)
    exact = f, *_by_the_formula(a, w, m, x[:train], pulls[:train], act)[1:]
    for r, e in zip(found, exact, strict=True):
        torch.testing.assert_close(r, e, rtol=0, atol=1e-10)
    assert sum(seen) == train
    if engine == "chunked":
        blocks = {130: min(block // planes, 130), 3: P if name == "relu" else 8}
        assert max(seen) == (train if N * train <= tiles.elements(w) else min(train, blocks[d]))


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_every_process_makes_as_many_blocks(monkeypatch, name):
    """However its number of particles lies to what fits a tile"""
    monkeypatch.setattr(tiles, "_CPU_TILE", 8 * 64 * P)
    monkeypatch.setattr(tiles, "_BLOCK", 8)
    for d, calls in ((130, {"tanh": 2, "gelu": 3}[name]), (3, 1)):
        for n in (63, 64, 65, N):
            (a, w, m, x, y), seen = _problem(n=n, d=d), []

            def total(f, seen=seen):
                seen.append(len(f))
                return 2 * f

            act = mf.activation(name)
            f, va, vw = reductions.step(a, w, m, x, lambda f, rows, y=y: y[rows] - f, act, "chunked", total=total)
            assert (len(seen), sum(seen)) == (calls, P)
            exact = 2 * _by_the_formula(a, w, m, x, y, act)[0]
            torch.testing.assert_close(f, exact, rtol=0, atol=1e-10)
            for mine, right in zip((va, vw), _by_the_formula(a, w, m, x, y - exact, act)[1:], strict=True):
                torch.testing.assert_close(mine, right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("d", [3, 130])
def test_steps_in_one_room_take_no_new_memory_for_the_velocity(monkeypatch, d):
    """Also after one of another size and precision; without a room, earlier results stay as they are."""
    act, room = mf.activation("tanh"), tiles.Room()

    def step(problem, room=None):
        a, w, m, x, y = problem
        monkeypatch.setattr(tiles, "_KEPT", 8 * len(w) * w.element_size())
        return reductions.step(a, w, m, x, lambda f, rows: y[rows] - f, act, "chunked", room=room)

    problem, smaller = _problem(d=d, c=1), _problem(n=40, d=d, c=1, dtype=torch.float32)
    exact = step(problem)
    first, kept = step(problem, room), [t.clone() for t in exact]
    places = [t.data_ptr() for t in first[1:]]
    step(_problem(d=d, c=1, seed=1), room)
    assert d < 128 or not torch.equal(first[2], exact[2]), "the room is not used"
    again = step(problem, room)
    for mine, right in zip(again, exact, strict=True):
        assert torch.equal(mine, right)
    assert d < 128 or [t.data_ptr() for t in again[1:]] == places
    for mine, right in zip(step(smaller, room), step(smaller), strict=True):
        assert torch.equal(mine, right)
    assert all(map(torch.equal, exact, kept))


def test_a_step_has_gradients():
    a, w, m, x, y = _problem()
    w.requires_grad_()
    results = reductions.step(a, w, m, x, lambda f, rows: y[rows] - f, GELU, "chunked")
    exact = _both(a, w, m, x, y - _by_the_formula(a, w, m, x, y, GELU)[0], GELU, "dense")
    found, expected = (torch.autograd.grad(_cotangent(r), w)[0] for r in (results, exact))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("train", [0, -1, P + 1, 2.5])
def test_a_step_names_a_wrong_number_of_training_points(train):
    a, w, m, x, y = _problem()
    with pytest.raises(ValueError, match="train"):
        reductions.step(a, w, m, x, lambda f, rows: y[rows] - f, GELU, "auto", train)


@pytest.mark.parametrize("name", ["tanh", "relu", "gelu"])
def test_tiles_leave_their_arguments_as_they_were(name):
    problem = _problem(d=70)
    before = [t.clone() for t in problem]
    a, w, m, x, y = problem
    _both(*problem, mf.activation(name), "chunked")
    reductions.step(a, w, m, x, lambda f, rows: y[rows] - f, mf.activation(name), "chunked")
    assert all(torch.equal(t, b) for t, b in zip(problem, before, strict=True))


def test_an_activation_with_a_library_name_but_its_own_slope_keeps_it():
    """Shortcuts belong to the functions, not to the name: here phi' is twice that of tanh."""
    mine = mf.Activation("tanh", torch.tanh, lambda h: 2 / torch.cosh(h) ** 2, tried=True)
    problem = _problem()
    doubled = 2 * _by_the_formula(*problem, mf.activation("tanh"))[2]
    torch.testing.assert_close(_both(*problem, mine, "chunked")[2], doubled, rtol=0, atol=1e-12)


# ---- what the sums mean ----------------------------------------------------------------------------------------------


def _risk(a, w, m, x, y, act):
    return 0.5 * (reductions.outputs(a, w, m, x, act, "dense") - y).square().sum() / len(x)


@pytest.mark.parametrize("engine", ["dense", "chunked"])
@pytest.mark.parametrize("name", ["tanh", "gelu", "softplus"])
def test_velocity_is_minus_the_gradient_of_the_risk_per_mass(name, engine):
    """d R / d a_r = -m_r v_a[r], d R / d w_r = -m_r v_w[r]: by autograd, and by central differences with steps of 1e-5."""
    (a, w, m, x, y), act = _problem(n=7), mf.activation(name)
    delta = y - reductions.outputs(a, w, m, x, act)
    velocity = reductions.velocity(a, w, x, delta, act, engine)
    leaves = [a.clone().requires_grad_(), w.clone().requires_grad_()]
    for v, gradient in zip(velocity, torch.autograd.grad(_risk(*leaves, m, x, y, act), leaves), strict=True):
        torch.testing.assert_close(gradient, -m[:, None] * v, rtol=0, atol=1e-14)
    for which, (r, i) in ((0, (2, 1)), (0, (6, 0)), (1, (0, 2)), (1, (3, 0))):
        step = torch.zeros_like((a, w)[which])
        step[r, i] = 1e-5
        up, down = ([t + s * step if k == which else t for k, t in enumerate((a, w))] for s in (1, -1))
        slope = (_risk(*up, m, x, y, act) - _risk(*down, m, x, y, act)) / 2e-5
        assert slope.item() == pytest.approx(-(m[r] * velocity[which][r, i]).item(), abs=1e-9)


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("engine", ["dense", "chunked"])
def test_splitting_a_particle_changes_nothing(engine):
    """Two of half weight in its place: the same outputs, and both move as the one did."""
    a, w, m, x, delta = _problem()
    f, va, vw = _both(a, w, m, x, delta, GELU, engine)
    m2 = torch.cat([m, m[:1] / 2])
    m2[0] /= 2
    f2, va2, vw2 = _both(torch.cat([a, a[:1]]), torch.cat([w, w[:1]]), m2, x, delta, GELU, engine)
    torch.testing.assert_close(f2, f, rtol=0, atol=1e-14)
    torch.testing.assert_close(va2, torch.cat([va, va[:1]]), rtol=0, atol=1e-13)
    torch.testing.assert_close(vw2, torch.cat([vw, vw[:1]]), rtol=0, atol=1e-13)


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("engine", ["dense", "chunked"])
def test_the_order_of_particles_and_data_does_not_matter(engine):
    a, w, m, x, delta = _problem()
    g = torch.Generator().manual_seed(2)
    r, s = torch.randperm(N, generator=g), torch.randperm(P, generator=g)
    f, va, vw = _both(a, w, m, x, delta, GELU, engine)
    f2, va2, vw2 = _both(a[r], w[r], m[r], x[s], delta[s], GELU, engine)
    torch.testing.assert_close(f2, f[s], rtol=0, atol=1e-14)
    torch.testing.assert_close(va2, va[r], rtol=0, atol=1e-13)
    torch.testing.assert_close(vw2, vw[r], rtol=0, atol=1e-13)


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_is_the_weighted_second_moment_of_features(dtype):
    _, w, m, x, _ = _problem(dtype=dtype)
    q = torch.tanh(w @ x.T)
    found = reductions.gram(lambda w, q: torch.cat([torch.tanh(w @ x.T), q], 1), m, w, q, columns=2 * P)
    exact = torch.einsum("r,rk,rl->kl", m.double(), q.double(), q.double()).repeat(2, 2)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=0, atol=8 * torch.finfo(dtype).eps)


# ---- choices and refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"a": (N + 1, C)}, "outputs velocity"),
        ({"w": (N - 1, D)}, "outputs velocity"),
        ({"m": (N + 1,)}, "outputs"),
        ({"m": (N, 1)}, "outputs"),
        ({"x": (P, D + 1)}, "outputs velocity"),
        ({"delta": (P + 1, C)}, "velocity"),
        ({"delta": (P, C + 1)}, "velocity"),
        ({"delta": (P,)}, "velocity"),
        ({"a": (N,)}, "outputs velocity"),
        ({"w": (N,)}, "outputs velocity"),
        ({"x": (D,)}, "outputs velocity"),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "dense", "chunked", "keops"])
def test_shapes_that_do_not_fit_are_named(engine, change, what):
    sizes = {"a": (N, C), "w": (N, D), "m": (N,), "x": (P, D), "delta": (P, C)} | change
    t = {name: torch.ones(size, dtype=torch.float64) for name, size in sizes.items()}
    for which in what.split():
        names = ("a", "w", "m", "x") if which == "outputs" else ("a", "w", "x", "delta")
        with pytest.raises(ValueError, match=f"{which} needs a \\(N, C\\), w \\(N, D\\)") as error:
            getattr(reductions, which)(*(t[name] for name in names), GELU, engine)
        assert all(f"{name} {size}" in str(error.value) for name, size in change.items())


@pytest.mark.parametrize("engine", ["gpu", "", None])
def test_an_unknown_engine_is_answered_with_the_known_ones(engine):
    with pytest.raises(ValueError, match=r"unknown engine: received .*; known: auto, chunked, dense, keops"):
        reductions.outputs(*_problem()[:4], GELU, engine)


@pytest.mark.parametrize(
    ("device", "dtype", "n", "inputs", "works", "chosen"),
    [
        ("cpu", torch.float32, 100, 5, True, "dense"),
        ("cpu", torch.float32, 10**6, 5, True, "chunked"),
        ("cuda", torch.float32, 100, 5, True, "dense"),
        ("cuda", torch.float32, 10**6, 20, True, "keops"),
        ("cuda", torch.float64, 10**6, 10, True, "keops"),
        ("cuda", torch.float64, 10**6, 20, True, "chunked"),
        ("cuda", torch.float32, 10**6, 64, True, "chunked"),
        ("cuda", torch.float32, 10**6, 5, False, "chunked"),
    ],
)
def test_auto_chooses_by_shape_dtype_and_device(monkeypatch, device, dtype, n, inputs, works, chosen):
    monkeypatch.setattr(keops, "works", lambda _: works)
    like = SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert reductions.choose(n, 1000, inputs, like, GELU) == chosen
    without = mf.Activation("mine", torch.sin, torch.cos)
    assert reductions.choose(n, 1000, inputs, like, without) == chosen.replace("keops", "chunked")


_MEMORY = """
import torch
from meanfield import activation
from meanfield.measures import reductions
from tests.memory import forget_peak, peak

n, p, d = 200_000, 2_000, 8
a, w, x = torch.ones(n, 1), torch.full((n, d), 0.1), torch.full((p, d), 0.1)
m, y = torch.full((n,), 1 / n), torch.full((p, 1), 2.0)
reductions.velocity(a[:9], w[:9], x, y, activation("relu"), "chunked")  # first calls load code
before = forget_peak()
f = reductions.outputs(a, w, m, x, activation("relu"), "chunked")
reductions.velocity(a, w, x, y - f, activation("relu"), "chunked")
print(peak() - before)
"""


@pytest.mark.processes
@pytest.mark.skipif(not memory.AVAILABLE, reason="the system does not tell a process its memory")
def test_chunked_needs_a_fraction_of_the_memory_of_all_pairs():
    """N P = 200,000 x 2,000 float32 numbers are 1.6 GB: less than 0.2 GB is added, freed and fragmented blocks included."""
    command = [sys.executable, "-c", _MEMORY]
    ran = subprocess.run(command, env=environment(threads=1), capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 0.2e9


# ---- KeOps -----------------------------------------------------------------------------------------------------------


@pytest.mark.keops
def test_keops_formulas_are_the_activations():
    """phi and phi' of every activation, from h = 0 to 1e4, in one reduction; erf is a polynomial of error 2e-14."""
    h = torch.cat([torch.linspace(-40, 40, 1601), torch.tensor([-1e4, -100, 1e-9, -1e-9, 100, 1e4])]).double()[:, None]
    acts = [act for act in map(mf.activation, activations.names()) if act.keops]
    constants = max((act.keops_constants() for act in acts), key=len)
    assert all(act.keops_constants() in ((), constants) for act in acts)  # one parameter k serves all
    *head, text = [keops.formula(act, which, "h") for act in acts for which in ("phi", "dphi")]
    for part in reversed(head):
        text = f"Concat({part},{text})"
    aliases = ["h=Vi(1)", "one=Vj(1)", f"k=Pm({len(constants)})"]
    reduction = keops._genred()(f"{text}*one", aliases, reduction_op="Sum", axis=1)
    found = reduction(h, h.new_ones(1, 1), h.new_tensor(constants), backend="CPU")
    exact = torch.cat([part(h) for act in acts for part in (act.phi, act.dphi)], 1)
    assert ((found - exact).abs() <= 5e-14 * (1 + h.abs())).all()


@pytest.mark.keops
@pytest.mark.parametrize("name", ["gelu", "sigmoid"])
def test_a_sum_of_keops_in_parts_is_the_whole(monkeypatch, name):
    """As on a GPU: 200 particles in 7 parts of 29, the last filled up by 3; phi(0) = 1/2 for the sigmoid."""
    monkeypatch.setattr(keops, "_parts", lambda particles, samples, device: 7)
    problem, act = _problem(), mf.activation(name)
    found = reductions.outputs(*problem[:4], act, "keops")
    torch.testing.assert_close(found, _by_the_formula(*problem, act)[0], rtol=0, atol=1e-12)
    assert keops.works(CPU)


@pytest.mark.parametrize(
    ("particles", "samples", "device", "parts"),
    [(10**7, 1000, "cpu", 1), (10**7, 1000, "cuda", 262), (2000, 1000, "cuda", 1), (10**5, 10**6, "cuda", 1)],
)
def test_a_sum_of_keops_is_split_only_on_gpus_and_where_rows_are_few(particles, samples, device, parts):
    assert keops._parts(particles, samples, torch.device(device)) == parts


@pytest.mark.keops
def test_concurrent_calls_of_keops_give_each_its_own_sums():
    problems = [_problem(seed=seed) for seed in range(4)]
    exact = [_by_the_formula(*problem, GELU) for problem in problems]
    start, wrong = threading.Barrier(4), []

    def work(k):
        start.wait()
        for _ in range(10):
            found = _both(*problems[k], GELU, "keops")
            if not all(torch.allclose(f, e, rtol=0, atol=1e-12) for f, e in zip(found, exact[k], strict=True)):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keops.works(CPU)
    assert wrong == []


def test_one_thread_at_a_time_is_in_keops(monkeypatch):
    """A stub in KeOps' place counts who is inside; it returns zeros, which shows that it served."""
    inside, most = [], []

    def reduction(*fields, backend):
        del backend
        inside.append(1)
        time.sleep(0.01)
        most.append(len(inside))
        inside.pop()
        return torch.zeros(P, C, dtype=torch.float64)

    monkeypatch.setattr(keops, "_genred", lambda: object())
    monkeypatch.setattr(keops, "_reduction", lambda *key: reduction)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(reductions.outputs(*_problem()[:4], GELU, "keops")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]
    assert all(torch.equal(f, torch.zeros(P, C).double()) for f in found)


def _absent(monkeypatch):
    for name in ("pykeops", "pykeops.torch"):
        monkeypatch.setitem(sys.modules, name, None)


def _raises_type_error(monkeypatch):
    """As where libcudart is missing."""

    class Module(types.ModuleType):
        def __getattr__(self, name):
            raise TypeError("bad argument type")

    for name in ("pykeops", "pykeops.torch"):
        monkeypatch.setitem(sys.modules, name, Module(name))


def _does_not_compile(monkeypatch):
    def reduction(*key):
        raise RuntimeError("g++: not found")

    monkeypatch.setattr(keops, "_genred", lambda: object())
    monkeypatch.setattr(keops, "_reduction", reduction)


@pytest.mark.parametrize("breakage", [_absent, _raises_type_error, _does_not_compile])
def test_tiles_serve_where_keops_is_broken_and_say_so_once(monkeypatch, breakage):
    breakage(monkeypatch)
    problem = _problem()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = [_both(*problem, GELU, "keops") for _ in range(2)]
    assert [w.category for w in seen] == [RuntimeWarning]
    assert "KeOps failed here" in str(seen[0].message)
    assert "chunked engine serves" in str(seen[0].message)
    assert not keops.works(CPU)
    for results in found:
        for f, e in zip(results, _by_the_formula(*problem, GELU), strict=True):
            torch.testing.assert_close(f, e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("status", [0, 1, -11])
def test_keops_on_a_gpu_is_tried_in_a_process_of_its_own(monkeypatch, status):
    """Its compiler can end the interpreter."""
    tries = []

    def run(command, **options):
        tries.append(command)
        return subprocess.CompletedProcess(command, status, "", "")

    monkeypatch.setattr(keops.subprocess, "run", run)
    monkeypatch.setattr(keops, "_genred", lambda: object())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = [keops.works(torch.device("cuda")) for _ in range(2)]
    assert found == [status == 0] * 2
    assert len(tries) == 1
    assert [str(w.message)[:40] for w in seen] == ([] if status == 0 else ["KeOps failed here (RuntimeError: a proce"])


def test_tiles_serve_an_activation_without_a_formula_and_say_so_once():
    mine, problem = replace(GELU, name="mine", keops=None), _problem()
    with pytest.warns(RuntimeWarning, match="'mine' has no KeOps formula: the chunked engine serves") as seen:
        found = _both(*problem, mine, "keops")
    assert len(seen) == 1
    for f, e in zip(found, _by_the_formula(*problem, GELU), strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=1e-12)
    assert not keops._state["broken"]  # KeOps itself is in order


@pytest.mark.parametrize("breakage", [_absent, _raises_type_error, _does_not_compile])
@pytest.mark.parametrize("particles", [8, 2**16])
def test_stats_name_the_engine_that_served_after_keops_failed(monkeypatch, breakage, particles):
    """Also where the failure comes with the first sum, when the flow is made already."""
    breakage(monkeypatch)
    data = mf.Dataset(torch.eye(5, dtype=torch.float64)[:, :3], torch.ones(5, 1, dtype=torch.float64))
    asked = mf.Problem(data, mf.Network(1, "gelu"), mf.mean_field(), mf.Training(0.1, 2))
    solver = WassersteinFlow(particles, engine="keops", snapshots=())
    with pytest.warns(RuntimeWarning, match="KeOps failed here"):
        found = solver(asked)
    assert found.stats["engine"] == "chunked"
    assert replace(solver, engine="dense")(asked).stats["engine"] == "dense"
    assert replace(solver, engine="auto")(asked).stats["engine"] == ("dense" if particles == 8 else "chunked")


def test_tiles_serve_what_keops_cannot(monkeypatch):
    monkeypatch.setattr(keops, "works", lambda _: True)
    x = torch.ones(P, D)
    assert reductions.serving("keops", N, x, GELU) == "keops"
    assert reductions.serving("keops", N, x.half(), GELU) == "chunked"
    with pytest.warns(RuntimeWarning, match="no KeOps formula"):
        assert reductions.serving("keops", N, x, replace(GELU, keops=None)) == "chunked"


@pytest.fixture
def pretended_pykeops(tmp_path, monkeypatch):
    """A package that notes the environment in which it is imported."""
    (tmp_path / "pykeops").mkdir()
    (tmp_path / "pykeops" / "__init__.py").write_text("")
    (tmp_path / "pykeops" / "torch.py").write_text("import os\nclass Genred:\n    environment = dict(os.environ)\n")
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "pykeops"}
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "pykeops"]:
        del sys.modules[name]
    sys.modules.update(real)


@pytest.mark.usefixtures("pretended_pykeops")
@pytest.mark.parametrize(
    ("flags", "passed_on"), [("-O2 -ffast-math -g", "-O2 -g"), ("-Ofast", ""), ("-funsafe-math-optimizations -g", "-g")]
)
def test_unsafe_compiler_flags_are_not_passed_on_and_stay_in_place(monkeypatch, flags, passed_on):
    """-ffast-math would turn on flush-to-zero in the whole process."""
    monkeypatch.setenv("CXXFLAGS", flags)
    assert keops._genred().environment["CXXFLAGS"].split() == passed_on.split()
    assert keops.os.environ["CXXFLAGS"] == flags


@pytest.mark.usefixtures("pretended_pykeops")
def test_keops_is_imported_quietly_and_leaves_no_flags(monkeypatch):
    """pykeops 2.3 imports keopscore before it passes PYKEOPS_VERBOSE on: KEOPS_VERBOSE is needed too."""
    for name in ("CXXFLAGS", "PYKEOPS_VERBOSE", "KEOPS_VERBOSE"):
        monkeypatch.delenv(name, raising=False)
    environment = keops._genred().environment
    assert (environment.get("PYKEOPS_VERBOSE"), environment.get("KEOPS_VERBOSE")) == ("0", "0")
    assert "CXXFLAGS" not in keops.os.environ


@pytest.mark.usefixtures("pretended_pykeops")
def test_beside_a_gpu_the_compiler_keeps_its_library_apart(monkeypatch, tmp_path):
    """KeOps 2.3 compiles its helper for GPUs with its own flags alone: the program that it calls must add ours."""
    if sys.platform != "linux":
        pytest.skip("for the linker of Linux")
    compiler = tmp_path / "mine"
    compiler.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("KEOPS_CACHE_FOLDER", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    environment = keops._genred().environment
    asked = [environment["CXX"], "-O3", "a file.cpp"]
    shown = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert shown == f"-O3|a file.cpp|{keops._APART}|"
    assert keops.os.environ["CXX"] == str(compiler)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("end", "told"), [("kill -ABRT $$", "ended with status -6"), ("echo no >&2; echo why >&2; exit 3", "status 3: why")]
)
def test_the_trial_of_keops_tells_how_it_ended(monkeypatch, tmp_path, end, told):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{end}\n")
    python.chmod(0o755)
    monkeypatch.setattr(keops.sys, "executable", str(python))
    assert keops.end_of_trial.__wrapped__().endswith(told)


def test_two_activations_of_one_name_keep_their_own_formulas(monkeypatch):
    """Activations are equal by name; compiled formulas may not be looked up by it."""
    monkeypatch.setattr(keops, "_genred", lambda: lambda text, aliases, **options: text)
    for which in ("outputs", "velocity"):
        first, second = (mf.Activation("mine", torch.sin, torch.cos, (f, f)) for f in ("Sin({h})", "Cos({h})"))
        assert keops._reduction(which, first, D, C) != keops._reduction(which, second, D, C)


def test_the_trial_of_keops_runs_its_probe(monkeypatch):
    asked = []
    monkeypatch.setattr(
        keops.subprocess, "run", lambda command, **_: asked.append(command) or SimpleNamespace(returncode=0)
    )
    assert not keops.end_of_trial.__wrapped__()
    ran = []
    monkeypatch.setattr(keops, "probe", lambda: ran.append(True))
    exec(asked[0][-1], {})
    assert ran == [True]
