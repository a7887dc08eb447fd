"""Files: what is saved comes back equal, opens with plain xarray, and whatever cannot be read or kept is refused in words."""

import json
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

import meanfield as mf
from meanfield.comparison.predicted import Fluctuation
from meanfield.comparison.report import Deviation, DeviationReport
from meanfield.comparison.statistics import Exponent
from meanfield.files import sealed, storage
from meanfield.files.storage import load, save
from meanfield.network import activations
from meanfield.problem import losses
from meanfield.solution.solution import Given
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow, lazy_prediction, measured_exponents, proxy_comparison


def _short(problem, **changes):
    return replace(problem, training=mf.Training(learning_rate=0.2, steps=3), **changes)


def _three_classes(**network):
    data = mf.gaussian_mixture(n_train=5, n_test=3, inputs=4, classes=3)
    return mf.Problem(data, mf.Network(**network), loss="cross_entropy", training=mf.Training(0.1, 3, "gradient_flow"))


def _solutions(tiny):
    bare = replace(tiny.data, x_test=None, y_test=None)
    return {
        "flow": WassersteinFlow(particles=32)(_short(tiny)),
        "flow, float32, bias, three classes": WassersteinFlow(particles=32, dtype="float32")(
            _three_classes(bias_std=0.3)
        ),
        "flow without test samples or snapshots": WassersteinFlow(particles=8, snapshots=())(_short(tiny, data=bare)),
        "flow without test targets": WassersteinFlow(particles=8)(_short(tiny, data=replace(tiny.data, y_test=None))),
        "flow of no steps": WassersteinFlow(particles=8)(tiny.with_steps(0)),
        "flow of quadrature points, ntk units": WassersteinFlow(
            particles=81, initial="gauss_hermite", balanced=False, rtol=1e-3
        )(_short(tiny, scaling=mf.mean_field(0.5))),
        "net": FiniteWidth(width=6, seed=3)(_short(tiny, scaling=mf.ntk())),
        "net of depth 3, float32, bias, residual": FiniteWidth(width=6, dtype="float32", snapshots=(0, 2, -1))(
            _three_classes(depth=3, bias_std=0.1, residual=0.7, activation="gelu")
        ),
        "net without its neurons": FiniteWidth(width=6, keep_neurons=False)(_short(tiny)),
    }


def test_everything_comes_back_equal(tiny_problem, tmp_path):
    for name, solution in _solutions(tiny_problem).items():
        found = load(save(solution, tmp_path / "run.nc"))
        assert found == solution, name
        assert found.f.dtype == solution.f.dtype, name
        assert dict(found.stats) == dict(solution.stats), name
        assert [p.name for p in tmp_path.iterdir()] == ["run.nc"], name
        loaded_tensors = [*found.state.values(), *found.fields.values(), found.f]
        assert all(t.is_contiguous() and t.device.type == "cpu" for t in loaded_tensors), name


def test_equality_sees_a_changed_number(tiny_problem, tmp_path):
    """The test above could not fail if == did not look."""
    solution = FiniteWidth(width=4)(_short(tiny_problem))
    path = save(solution, tmp_path / "run.nc")
    for part in (
        lambda s: s.f,
        lambda s: s.f_test,
        lambda s: s.state["a"],
        lambda s: s.fields["g1"],
        lambda s: s.tangent_kernels,
        lambda s: s.kernels["G1"].factor,
        lambda s: s.particles[0].w,
        lambda s: s.problem.data.x,
    ):
        found = load(path)
        part(found).view(-1)[-1] += 1e-12
        assert found != solution


def test_a_loaded_run_goes_on_as_if_never_saved(tiny_problem, tmp_path):
    for solver in (WassersteinFlow(particles=16), FiniteWidth(width=5)):
        half = solver(tiny_problem.with_steps(4))
        resumed = solver.resume(load(save(half, tmp_path / "half.nc")), 6)
        assert torch.equal(resumed.f, solver(tiny_problem).f)


def test_interrupted_and_non_finite_runs_are_kept(tiny_problem, tmp_path):
    whole = WassersteinFlow(particles=8)(_short(tiny_problem))
    cut = replace(whole, status=mf.Status.INTERRUPTED, f=whole.f[:2], f_test=whole.f_test[:2], recorded_steps=())
    assert load(save(cut, tmp_path / "cut.nc")) == cut
    empty = replace(whole, f=whole.f[:0], f_test=whole.f_test[:0], recorded_steps=())
    assert load(save(empty, tmp_path / "empty.nc")) == empty

    wild = replace(tiny_problem, training=mf.Training(1e3, 200), network=mf.Network(activation="linear"))
    blown = FiniteWidth(width=4, raise_on_failure=False)(wild)
    assert blown.status is mf.Status.DIVERGED
    state = dict(blown.state) | {"a": torch.tensor([[np.nan], [np.inf], [-np.inf], [-0.0]], dtype=torch.float64)}
    found = load(save(replace(blown, state=state), tmp_path / "blown.nc"))
    assert replace(found, state={}) == replace(blown, state={})
    for key, value in state.items():  # NaN is unlike itself: compare the bits
        assert found.state[key].numpy().tobytes() == value.numpy().tobytes()


def test_state_of_any_type_and_shape(tiny_problem, tmp_path):
    state = {
        "generator": torch.Generator().get_state(),
        "flags": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "square": torch.arange(8).reshape(2, 2, 2),
        "half": torch.ones(3, dtype=torch.float16),
        "strided": torch.arange(6.0).reshape(2, 3).T,
    }
    solution = replace(WassersteinFlow(particles=8)(_short(tiny_problem)), state=state)
    assert load(save(solution, tmp_path / "run.nc")) == solution


def test_kernels_of_a_loaded_measure_are_those_that_the_run_would_have_made(tiny_problem, tmp_path):
    whole = WassersteinFlow(particles=64, snapshots=(0, 1, -1))(_short(tiny_problem))
    found = load(save(whole, tmp_path / "run.nc"))
    assert found.tangent_deferred
    assert not found.kernels["G1"].made
    assert torch.equal(found.kernels["G1"].at(1), whole.kernels["G1"].at(1))
    assert torch.equal(found.tangent_kernel(0), whole.tangent_kernel(0))


def test_kernels_and_particles_at_steps_of_their_own(tiny_problem, tmp_path):
    whole = WassersteinFlow(particles=8, snapshots=(0, 1, -1))(_short(tiny_problem))
    kernel = mf.TwoTimeKernel((1,), whole.kernels["Phi1"].factor[1:2])
    odd = replace(whole, kernels={"Phi1": kernel, "G1": whole.kernels["G1"]}, particles={3: whole.particles[3]})
    found = load(save(odd, tmp_path / "odd.nc"))
    assert found == odd
    torch.testing.assert_close(found.kernels["Phi1"].at(1), whole.kernels["Phi1"].at(1), rtol=0, atol=1e-14)


def test_plain_xarray_shows_labelled_results(tmp_path):
    solution = WassersteinFlow(particles=32, seed=5)(_three_classes(bias_std=0.3))
    with xr.open_dataset(save(solution, tmp_path / "run.nc"), engine="h5netcdf") as dataset:
        assert not {"tangent_kernels", "kernel_Phi1", "kernel_G1"} & set(dataset)  # nobody looked at them yet
    assert load(tmp_path / "run.nc") == solution  # looks at them
    path = save(solution, tmp_path / "run.nc")
    with xr.open_dataset(path, engine="h5netcdf") as dataset:
        assert dataset.f.dims == ("time", "sample", "output")
        assert dataset.f_test.dims == ("time", "test_sample", "output")
        assert dataset.tangent_kernels.dims == ("snapshot", "sample", "output", "sample_2", "output_2")
        assert dataset.kernel_Phi1.dims == ("snapshot", "rank_Phi1", "sample")
        assert dataset.kernel_G1.dims == ("snapshot", "rank_G1", "sample_output")
        assert dataset.particle_w.dims == ("snapshot", "particle", "weight")
        np.testing.assert_array_equal(dataset.time, solution.times)
        np.testing.assert_array_equal(dataset.step, [0, 1, 2, 3])
        np.testing.assert_array_equal(dataset.loss, solution.loss)
        np.testing.assert_array_equal(dataset.test_loss, solution.test_loss)
        np.testing.assert_array_equal(dataset.particle_a.sel(snapshot=3), solution.measure().a)
        assert dataset.loss.units == "1"
        assert "training samples" in dataset.loss.long_name
        attributes = dict(dataset.attrs)
    with xr.open_dataset(path) as dataset:
        np.testing.assert_array_equal(dataset.f, solution.f)
    assert attributes["kind"] == "meanfield solution"
    assert attributes["seed"] == 5
    assert attributes["threads"] == torch.get_num_threads()
    assert attributes["title"] == str(solution)
    assert attributes["created"].endswith("+00:00")
    held = json.loads(attributes["versions"])["torch"]
    assert (
        held.partition("+")[0] == torch.__version__.partition("+")[0]
    )  # some wheels name their CUDA in one of the two alone
    settings = json.loads(attributes["settings"])
    assert settings["problem"]["network"]["bias_std"] == 0.3
    assert settings["problem"]["training"]["optimiser"] == "gradient_flow"
    assert settings["solver"]["particles"] == 32
    assert settings["status"] == "FINISHED"


def test_the_commit_is_told_for_our_own_tree_only(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )

    copy = tmp_path / "storage.py"
    copy.write_text("1\n")
    monkeypatch.setattr(storage, "__file__", str(copy))
    asked = storage._commit.__wrapped__
    assert asked() is None  # no repository
    git("init", "-q")
    assert asked() is None  # a repository of something else
    git("add", "storage.py")
    git("commit", "-qm", "one")
    assert asked() == git("rev-parse", "HEAD").stdout.strip()
    copy.write_text("2\n")
    assert asked() == git("rev-parse", "HEAD").stdout.strip() + "-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert asked() is None  # no git


def _report():
    columns = {f: np.array([0.1 * i, 0.2]) for i, f in enumerate(
        ("deviation", "deviation_se", "variance", "variance_se", "bias2", "bias2_se", "floor"), 1)}  # fmt: skip
    none = columns | {"variance": np.full(2, np.nan)}
    found = {
        "f": Deviation("f", **columns, reference_error=0.01,
                       exponents={"deviation": Exponent(-0.5, -0.6, -0.4), "variance": Exponent(-1.0, -1.1, -0.9)}),
        "h1": Deviation("h1", **none, reference_error=float("nan"), exponents={"distance": Exponent(-0.4, -1.0, 0.0)}),
        "loss": Deviation("loss", **columns, reference_error=0.5, exponents={}),
    }  # fmt: skip
    settings = {"networks": "32 of depth 1, tanh", "limit": "WassersteinFlow x 2"}
    pair, nan = np.array([1.0, 2.0]), float("nan")
    predictions = (
        Fluctuation("variance", "f", (20,), 6, True, 0.9, pair, 0.1 * pair, 1.5, 0.02),
        Fluctuation("bias", "Phi1", (0, 20), 72, False, 0.8, nan * pair, nan * pair, nan, nan),
    )
    return DeviationReport((64, 128), (16, 16), found, pair, 0.1 * pair, 1.5, settings, 0.02, predictions)


def test_reports_come_back_equal(tmp_path):
    alone = replace(_report(), predicted_n_var=float("nan"), predicted_n_var_se=float("nan"), predictions=())
    for report in (_report(), alone, replace(_report(), observables={})):
        found = load(save(report, tmp_path / "report.nc"))
        assert found == report
        assert found.table() == report.table()
    save(_report(), tmp_path / "report.nc")
    with xr.open_dataset(tmp_path / "report.nc", engine="h5netcdf") as dataset:
        assert dataset.kind == "meanfield deviation report"
        assert float(dataset.deviation.sel(observable="f", width=64)) == 0.1
        assert float(dataset.exponent.sel(observable="f", quantity="variance", bound="low")) == -1.1
    assert load(tmp_path / "report.nc") != replace(_report(), n_var=np.array([1.0, 2.0 + 1e-15]))


def test_paths_that_will_not_do(tiny_problem, tmp_path):
    solution = WassersteinFlow(particles=8)(tiny_problem.with_steps(0))
    (tmp_path / "folder.nc").mkdir()
    for path, message in (
        ("run", r"end in \.nc: received .*run'; give e\.g\. 'run\.nc'"),
        ("run.h5", r"give e\.g\. 'run\.nc'"),
        (".nc", r"end in \.nc"),
        ("folder.nc", r"is a folder: give a file"),
        ("missing/run.nc", r"does not exist: create .*missing first"),
    ):
        with pytest.raises(ValueError, match=message):
            save(solution, tmp_path / path)
    with pytest.raises(ValueError, match=r"result must be a Solution or a DeviationReport or .*: received dict"):
        save({}, tmp_path / "run.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.nc"]


def test_what_no_file_could_name_is_refused_before_writing(tiny_problem, tmp_path):
    path = tmp_path / "run.nc"
    mine = mf.Activation("cube of mine", lambda h: h**3, lambda h: 3 * h**2)
    pretender = mf.Activation("tanh", lambda h: h, torch.ones_like)
    squared = mf.loss("squared")
    my_loss = mf.Loss("my loss", squared.value, squared.delta, squared.check)
    solver = WassersteinFlow(particles=8, engine="dense")
    for changed, message in (
        (
            replace(tiny_problem, network=mf.Network(activation=mine)),
            "'cube of mine' is not registered.*register_activation",
        ),
        (replace(tiny_problem, network=mf.Network(activation=pretender)), "'tanh' is not registered"),
        (replace(tiny_problem, loss=my_loss), "loss 'my loss' is not registered.*register_loss"),
    ):
        with pytest.raises(ValueError, match=message):
            save(solver(changed.with_steps(1)), path)
    solution = solver(tiny_problem.with_steps(1))
    with pytest.raises(ValueError, match="the solver's setting odd cannot be kept: received list"):
        save(replace(solution, solver=dict(solution.solver) | {"odd": [1]}), path)
    with pytest.raises(ValueError, match="'state_a/b' cannot name an array"):
        save(replace(solution, state={"a/b": torch.zeros(1)}), path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def mine(monkeypatch):
    """An activation and a loss of one's own, forgotten again afterwards"""
    for room in (activations, losses):
        monkeypatch.setattr(room, "_KNOWN", dict(room._KNOWN))
    mf.register_activation(mf.Activation("cube of mine", lambda h: h**3, lambda h: 3 * h**2))
    mf.register_loss(
        mf.Loss("cosh of mine", lambda f, y: (f - y).cosh().sum(-1), lambda f, y: (y - f).sinh(), lambda y: None)
    )


@pytest.mark.parametrize(
    "solver", [WassersteinFlow(particles=8), FiniteWidth(4), CausalDMFT(samples=64, keep_state=True)]
)
def test_runs_of_registered_pieces_are_kept_drawn_and_resumed(tiny_problem, tmp_path, mine, solver):
    own = {"network": mf.Network(activation="cube of mine"), "loss": "cosh of mine"}
    asked = replace(tiny_problem, training=mf.Training(1e-3, 2), **own)
    solution = solver(asked)
    path = save(solution, tmp_path / "run.nc")
    found = load(path)
    assert found == solution
    assert found.problem.loss_function is mf.loss("cosh of mine")
    assert found.problem.perceptron.nonlinearity is mf.activation("cube of mine")
    longer = solver.resume(found, 1)
    assert torch.equal(longer.f, solver(asked.with_steps(3)).f)
    assert len(mf.plot.loss([found]).lines) >= 1
    for room, name in ((activations, "cube of mine"), (losses, "cosh of mine")):
        kept = room._KNOWN.pop(name)
        what = room.__name__.rpartition(".")[2][:-1].removesuffix("e")  # "activation", "loss"
        with pytest.raises(ValueError, match=f"unknown {what}: received '{name}'; known: .*register_{what} before"):
            load(path)
        room._KNOWN[name] = kept


def _edit(path, **attributes):
    """Changed on purpose, with a digest that fits"""
    with h5py.File(path, "a") as file:
        for name, value in attributes.items():
            file.attrs[name] = value
    sealed.write(path, memoryview(path.read_bytes()))
    return path


def test_broken_and_foreign_files(tiny_problem, tmp_path):
    solution = WassersteinFlow(particles=8)(tiny_problem.with_steps(2))
    whole = save(solution, tmp_path / "whole.nc").read_bytes()

    def file(name: str, content: bytes = whole) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    xr.Dataset({"a": ("x", [1.0, 2.0])}).to_netcdf(tmp_path / "alien.nc", engine="h5netcdf")
    with h5py.File(file("lacking.nc"), "a") as opened:
        del opened["f"]
    with h5py.File(file("reshaped.nc"), "a") as opened:
        del opened["y"]
        opened["y"] = np.zeros((2, 1))
    for name in ("lacking.nc", "reshaped.nc"):
        _edit(tmp_path / name)
    for path, message in (
        (tmp_path / "absent.nc", "no such file: .*absent.nc"),
        (tmp_path, "is a folder: give the .nc file itself"),
        (file("empty.nc", b""), "empty.nc is truncated or no netCDF-4 file"),
        (file("text.nc", b"f = 3\n"), "text.nc is truncated or no netCDF-4 file"),
        (file("table.csv", b"a,b\n1,2\n"), "or read data by mf.from_file"),
        (file("kernels.npz", b"PK"), "or read arrays and kernels by numpy.load"),
        (file("picture.nc", b"\x89PNG\r\n\x1a\n" + bytes(100)), "no netCDF-4 file"),
        (file("half.nc", whole[: len(whole) // 2]), "half.nc is truncated"),
        (file("almost.nc", whole[:-1]), "almost.nc is truncated"),
        (tmp_path / "alien.nc", "alien.nc is truncated or no netCDF-4 file of meanfield"),
        (_edit(file("other.nc"), kind="meanfield song"), "other.nc holds a 'meanfield song'"),
        (_edit(file("newer.nc"), format_version=99), "format version 99.*reads versions up to 2"),
        (_edit(file("unversioned.nc"), format_version="one"), "format version one"),
        (_edit(file("settings.nc"), settings="{"), "settings.nc is damaged"),
        (_edit(file("settings2.nc"), settings="{}"), "settings2.nc is damaged"),
        (tmp_path / "lacking.nc", "lacking.nc is damaged.*'f'"),
        (tmp_path / "reshaped.nc", "reshaped.nc cannot be loaded: x and y must have the same number of rows"),
    ):
        with pytest.raises(ValueError, match=message):
            load(path)
    assert load(file("whole.nc")) == solution


def test_nothing_is_pickled(tiny_problem, tmp_path, monkeypatch):
    import pickle

    def refuse(*arguments, **keywords):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    solution = FiniteWidth(width=4)(_short(tiny_problem))
    assert load(save(solution, tmp_path / "run.nc")) == solution


def test_names_of_classes_survive_storage(tmp_path):
    for classes in ((3, 8), (3, 8, 5)):
        problem = mf.Problem(mf.digits(classes, 4, 3), training=mf.Training(0.1, 1))
        found = load(save(FiniteWidth(4)(problem), tmp_path / "run.nc")).problem
        assert found == problem
        assert sorted(found.data.classes) == sorted(map(str, classes))


def test_what_studies_find_survives_storage(tmp_path):
    data = mf.digits(n_train=4, n_test=3)
    lazy = mf.Problem(data, mf.Network(2, "relu"), mf.ntk(), mf.Training(0.3, 4))
    prediction = lazy_prediction(lazy)
    assert load(save(prediction, tmp_path / "prediction.nc")) == prediction
    asked = mf.Problem(data, scaling=mf.default(8), training=mf.Training(0.3, 3), loss="logistic")
    powers = measured_exponents(asked, (8, 16, 32), 3)
    proxy = proxy_comparison(replace(asked, scaling=mf.mean_field(1.0)), 8, ("ntk", "mean_field"), 4, 4)
    for name, report in (("powers", powers), ("proxy", proxy)):
        found = load(save(report, tmp_path / f"{name}.nc"))
        assert type(found) is type(report)
        assert str(found) == str(report)
        for f in fields(report):
            one, other = getattr(report, f.name), getattr(found, f.name)
            if isinstance(one, np.ndarray):
                np.testing.assert_array_equal(one, other)
            elif f.name != "quantities":
                assert one == other, f.name
    for name, law in powers.quantities.items():
        assert law.measured == load(tmp_path / "powers.nc")[name].measured
        np.testing.assert_array_equal(law.values, load(tmp_path / "powers.nc")[name].values)


def test_a_setting_that_was_an_object_is_kept_by_the_name_of_its_type(tmp_path, tiny_problem):
    """In files as the text that they always held"""
    run = WassersteinFlow(initial=mf.ParticleMeasure.iid(4, tiny_problem.data.inputs))(tiny_problem)
    assert run.solver["initial"] == Given("ParticleMeasure")
    assert str(Given("Tensor")) == "given (Tensor)"
    path = mf.save(run, tmp_path / "run.nc")
    assert b'"initial": "given (ParticleMeasure)"' in path.read_bytes()
    assert mf.load(path) == run
