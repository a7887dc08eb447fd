"""Datasets: what the constructors promise holds, and broken input is refused with its place named."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import meanfield as mf


def _rows(*tensors):
    """The multiset of rows, for comparison."""
    return sorted(tuple(row) for tensor in tensors for row in tensor.round(decimals=9).tolist())


# ---- Dataset ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [list, np.array, np.float32, torch.tensor, lambda v: torch.tensor(v, dtype=torch.int32)]
)
def test_arrays_of_any_kind_become_float64_matrices(kind):
    data = mf.Dataset(x=kind([[1, 2, 3], [4, 5, 6]]), y=kind([7, 8]))
    assert torch.equal(data.x, torch.tensor([[1, 2, 3], [4, 5, 6]]).double())
    assert torch.equal(data.y, torch.tensor([[7], [8]]).double())  # (P,) is taken as (P, 1)
    assert (data.samples, data.inputs, data.outputs) == (2, 3, 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((3, 2)), "y": np.ones(4)}, "x and y must have the same number of rows: received 3 and 4"),
        ({"x": np.ones(3), "y": np.ones(3)}, "x must have two dimensions .* received shape \\(3,\\)"),
        ({"x": np.ones((3, 2, 2)), "y": np.ones(3)}, "x must have two dimensions .* received shape \\(3, 2, 2\\)"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "x is empty: received shape \\(0, 2\\)"),
        ({"x": np.ones((3, 0)), "y": np.ones(3)}, "x is empty: received shape \\(3, 0\\)"),
        ({"x": [[1.0], [np.nan], [np.inf]], "y": np.ones(3)}, "x holds 2 value.* the first, nan, at row 1, column 0"),
        ({"x": np.ones((2, 1)), "y": [0.0, -np.inf]}, "y holds 1 value.* the first, -inf, at row 1;"),
        ({"x": [["a"]], "y": [1.0]}, "x holds 1 value.* text: the first, 'a', at row 0, column 0"),
        ({"x": [[1.0, 2.0], [3.0]], "y": np.ones(2)}, "x is no array of numbers"),
        ({"x": None, "y": [1.0]}, "x is no array of numbers: received NoneType"),
        ({"x": np.array([[1j]]), "y": [1.0]}, "x holds 1 value.* complex"),
        ({"x": np.ones((1, 2)), "y": [1], "y_test": [1]}, "y_test was given without x_test"),
        ({"x": np.ones((1, 2)), "y": [1], "x_test": np.ones((1, 3))}, "same number of columns: received 2 and 3"),
        ({"x": np.ones((1, 2)), "y": [1], "x_test": np.ones((2, 2)), "y_test": [1]}, "rows: received 2 and 1"),
        ({"x": [[1]], "y": [1], "x_test": [[1]], "y_test": [[1, 2]]}, "columns: received 1 and 2"),
    ],
)
def test_arrays_that_make_no_dataset_are_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        mf.Dataset(**arrays)


def test_datasets_are_equal_by_value():
    data = mf.Dataset([[1.0]], [1.0], [[2.0]])
    assert data == mf.Dataset([[1.0]], [1.0], [[2.0]])
    assert data != mf.Dataset([[1.0]], [1.0])
    assert data != mf.Dataset([[1.0]], [1.0], [[3.0]])
    assert data != mf.Dataset([[1.0]], [1.0], [[2.0]], [[1.0]])


# ---- digits ----------------------------------------------------------------------------------------------------------


def test_digits_have_norm_sqrt_of_d():
    data = mf.digits()
    assert data.inputs == 64
    norms = torch.cat([data.x, data.x_test]).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 8.0), rtol=1e-14, atol=0)


def test_digits_train_and_test_are_disjoint_and_rightly_labelled():
    """All images asked for: train and test together are exactly scikit-learn's images, +1 for the first class."""
    images, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(8 * images / np.linalg.norm(images, axis=1, keepdims=True))
    total = int(np.isin(labels, (3, 8)).sum())
    data = mf.digits(classes=(8, 3), n_train=100, n_test=total - 100, seed=5)
    assert (len(data.x), len(data.x_test)) == (100, total - 100)
    for label, sign in ((8, 1.0), (3, -1.0)):
        found = (data.x[data.y[:, 0] == sign], data.x_test[data.y_test[:, 0] == sign])
        assert _rows(*found) == _rows(images[torch.as_tensor(labels == label)])


@pytest.mark.parametrize(
    ("classes", "one_hot", "outputs"), [((0, 1), None, 1), ((0, 1), True, 2), ((4, 7, 9), None, 3), ((2, 5), False, 1)]
)
def test_digits_targets_are_signs_or_one_hot(classes, one_hot, outputs):
    y = mf.digits(classes=classes, one_hot=one_hot).y
    assert y.shape == (32, outputs)
    assert set(y.unique().tolist()) == ({-1.0, 1.0} if outputs == 1 else {0.0, 1.0})
    assert outputs == 1 or torch.equal(y.sum(1), torch.ones(32).double())


def test_digits_without_test_samples():
    assert mf.digits(n_test=0).x_test is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_train": 300, "n_test": 200}, "n_train \\+ n_test = 500 exceeds the 360 images"),
        ({"classes": (0,)}, "at least two different digits"),
        ({"classes": (0, 10)}, "at least two different digits"),
        ({"classes": (1, 1)}, "the same number twice"),
        ({"classes": ()}, "classes is empty"),
        ({"classes": (0, 1, 2), "one_hot": False}, "3 classes need one-hot targets"),
        ({"n_train": 0}, "n_train must be at least 1: received 0"),
        ({"n_test": -1}, "n_test must be at least 0: received -1"),
        ({"seed": 0.5}, "seed must be a whole number: received 0.5"),
    ],
)
def test_digits_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        mf.digits(**settings)


@pytest.mark.parametrize("make", [mf.digits, mf.gaussian_mixture, mf.single_index_teacher, mf.multi_index_teacher])
def test_a_seed_is_one_dataset(make):
    assert make(seed=3) == make(seed=3)
    assert make(seed=3) != make(seed=4)
    assert (len(make(n_train=7, n_test=5).x), len(make(n_train=7, n_test=5).x_test)) == (7, 5)


# ---- mixtures and teachers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_mixture_has_unit_variance_around_means_of_norm_separation(classes):
    """Within 4 standard errors of cluster sizes, means and variances."""
    n, d, separation = 6000, 4, 3.0
    data = mf.gaussian_mixture(n, 0, d, classes, separation, seed=2)
    member = data.y == 1 if classes > 2 else torch.cat([data.y == 1, data.y == -1], 1)
    assert torch.equal(member.sum(1), torch.ones(n, dtype=torch.long))
    clusters = [data.x[member[:, k]] for k in range(classes)]
    error = 4 / min(map(len, clusters)) ** 0.5
    for cluster in clusters:
        assert abs(len(cluster) / n - 1 / classes) < 4 * (1 / classes * (1 - 1 / classes) / n) ** 0.5
        assert abs(cluster.mean(0).norm() - separation) < error
        assert ((cluster.var(0) - 1).abs() < error * 2**0.5).all()
    if classes == 2:
        assert ((clusters[0].mean(0) + clusters[1].mean(0)).abs() < error * 2**0.5).all()  # opposite


@pytest.mark.parametrize("directions", [1, 3])
def test_linear_teacher_is_recovered_by_least_squares(directions):
    """y = x . (u_1 + .. + u_k), of norm sqrt(k) as the u are orthonormal; train and test samples have the same teacher."""
    data = mf.multi_index_teacher(40, 20, 6, directions, link="linear", seed=4)
    u = torch.linalg.lstsq(data.x, data.y).solution
    torch.testing.assert_close(data.x_test @ u, data.y_test, rtol=0, atol=1e-12)
    assert u.norm().item() == pytest.approx(directions**0.5, rel=1e-12)


def test_single_index_teacher_depends_on_one_direction():
    """atanh(y) is linear in x, along a unit vector."""
    data = mf.single_index_teacher(40, 20, 6, link="tanh", seed=4)
    u = torch.linalg.lstsq(data.x, data.y.atanh()).solution
    torch.testing.assert_close(torch.tanh(data.x_test @ u), data.y_test, rtol=0, atol=1e-12)
    assert u.norm().item() == pytest.approx(1, rel=1e-12)


def test_quadratic_teacher_is_a_projector_on_its_directions():
    """y = sum_k (x . u_k)^2 = x^T M x, where M has k eigenvalues 1 and the others 0."""
    d, k = 4, 2
    data = mf.multi_index_teacher(60, 0, d, k, link=lambda h: h**2, seed=4)
    products = (data.x[:, :, None] * data.x[:, None, :]).flatten(1)
    m = torch.linalg.lstsq(products, data.y, driver="gelsd").solution.reshape(d, d)
    eigenvalues = torch.linalg.eigvalsh((m + m.T) / 2)
    torch.testing.assert_close(eigenvalues, torch.tensor([0.0, 0, 1, 1]).double(), rtol=0, atol=1e-11)


def test_noise_is_added_to_training_targets_only():
    clean, noisy = (mf.single_index_teacher(2000, 50, 6, noise=noise, seed=4) for noise in (0.0, 0.3))
    assert torch.equal(noisy.y_test, clean.y_test)
    noise = (noisy.y - clean.y)[:, 0]
    assert abs(noise.mean()) < 4 * 0.3 / 2000**0.5
    assert abs(noise.var() / 0.09 - 1) < 4 * (2 / 2000) ** 0.5


def test_inputs_of_teachers_are_standard_normal():
    x = mf.single_index_teacher(4000, 0, 3, seed=1).x
    assert (x.mean(0).abs() < 4 / 4000**0.5).all()
    assert ((x.T @ x / 4000 - torch.eye(3)).abs() < 4 * (2 / 4000) ** 0.5).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mf.multi_index_teacher(inputs=2, directions=3), "directions=3 exceeds inputs=2"),
        (lambda: mf.single_index_teacher(link="tahn"), "unknown activation: received 'tahn'"),
        (lambda: mf.single_index_teacher(noise=-1.0), "noise must be non-negative"),
        (lambda: mf.gaussian_mixture(classes=1), "classes must be at least 2"),
        (
            lambda: mf.gaussian_mixture(separation=float("nan")),
            "separation must be non-negative and finite: received nan",
        ),
        (lambda: mf.gaussian_mixture(n_train=True), "n_train must be a whole number: received True"),
        (lambda: mf.gaussian_mixture(inputs=0), "inputs must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- files -----------------------------------------------------------------------------------------------------------


def _npz(path: Path, **arrays) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_npz_is_read(tmp_path):
    x, y = np.arange(6.0).reshape(3, 2), np.array([1, -1, 1])
    path = _npz(tmp_path / "mine.npz", x=x, y=y, x_test=x[:1] + 1)
    assert mf.from_file(path) == mf.Dataset(x, y, x[:1] + 1, name="mine")
    assert mf.from_file(str(path)) == mf.from_file(path)


def test_csv_is_read(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a, b ,c,d\n1,2,3,4\n5,6,7,8e0\n\n-1,0.5,.25,0\n", encoding="utf-8-sig")  # a BOM and an empty line
    table = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [-1, 0.5, 0.25, 0]])
    assert mf.from_file(path) == mf.Dataset(table[:, :3], table[:, 3:], name="mine")
    assert mf.from_file(path, targets=2) == mf.Dataset(table[:, :2], table[:, 2:], name="mine")
    assert mf.from_file(path, targets=["d", "b"]) == mf.Dataset(table[:, [0, 2]], table[:, [3, 1]], name="mine")
    assert mf.from_file(path, targets="a") == mf.Dataset(table[:, 1:], table[:, :1], name="mine")


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_the_last_rows_become_test_samples(tmp_path, kind):
    x, y = np.arange(8.0).reshape(4, 2), np.arange(4.0)
    path = tmp_path / f"mine.{kind}"
    if kind == "npz":
        _npz(path, x=x, y=y)
    else:
        np.savetxt(path, np.column_stack([x, y]), delimiter=",", header="a,b,y", comments="")
    assert mf.from_file(path, n_test=1) == mf.Dataset(x[:3], y[:3], x[3:], y[3:], name="mine")
    with pytest.raises(ValueError, match="n_test=4 leaves no training sample of the 4 rows in mine"):
        mf.from_file(path, n_test=4)


_unpickled = []


def _explode():
    _unpickled.append("foreign code ran")


class _Bomb:
    """Unpickling it leaves a trace."""

    def __reduce__(self):
        return (_explode, ())


def _archive(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


_GOOD = _archive(x=np.random.default_rng(0).normal(size=(50, 20)), y=np.ones(50))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_archive(x=np.array([[_Bomb()]], dtype=object), y=np.ones(1)), "bad.npz .*pickled objects"),
        (pickle.dumps(_Bomb()), "bad.npz .*pickled objects"),
        (_GOOD[: len(_GOOD) // 2], "bad.npz is truncated"),
        (_GOOD[:60] + bytes(40) + _GOOD[100:], "bad.npz is truncated"),  # zlib stumbles
        (_GOOD[:3000] + bytes(40) + _GOOD[3040:], "bad.npz is truncated"),  # the checksum is wrong
        (b"", "bad.npz is truncated"),
        (_npy(np.ones((3, 2))), "bad.npz .*no .npz archive"),  # a .npy file under another name
        (_archive(x=np.ones((3, 2))), "bad.npz holds the arrays \\['x'\\]: needed are x and y"),
        (_archive(x=np.ones((3, 2)), y=np.ones(3), z=np.ones(3)), "holds the arrays \\['x', 'y', 'z'\\]"),
        (_archive(x=np.ones((3, 2)), y=np.array([1, np.nan, 1])), "y holds 1 value.* at row 1;"),
        (_archive(x=np.ones((3, 2)), y=np.ones(2)), "same number of rows: received 3 and 2"),
        (_archive(x=np.array([["a"]]), y=np.ones(1)), "x holds 1 value.* text: the first, 'a'"),
    ],
)
def test_broken_npz_is_refused_and_nothing_is_unpickled(tmp_path, content, message):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        mf.from_file(path)
    assert _unpickled == []


def test_npz_with_its_own_test_samples_takes_no_n_test(tmp_path):
    path = _npz(tmp_path / "mine.npz", x=np.ones((3, 2)), y=np.ones(3), x_test=np.ones((1, 2)))
    with pytest.raises(ValueError, match="holds x_test already: leave out n_test=1"):
        mf.from_file(path, n_test=1)


@pytest.mark.parametrize(
    ("text", "targets", "message"),
    [
        ("", 1, "bad.csv is empty"),
        ("a,b,y\n", 1, "bad.csv is empty"),
        ("a,b,y\n1,2,3\n4,five,6\n", 1, "bad.csv, line 3: .*'five'"),
        ("a,b,y\n\n1,2,3\n4,five,6\n", 1, "bad.csv, line 4: "),  # as an editor counts
        ("a,b,y\n1,2,3\n4,,6\n", 1, "bad.csv, line 3: "),
        ("a,b,y\n1,2,3\n4,5\n", 1, "bad.csv, line 3: 3 numbers expected"),
        ("a,b,y\n1,2,3\n4,5,6,7\n", 1, "bad.csv, line 3: 3 numbers expected"),
        ("a,b,y\n1,2,3\n4\n", 1, "bad.csv, line 3: 3 numbers expected"),
        ("a,b,y\n1,2,3\n4,nan,6\n", 1, "x holds 1 value.* at row 1, column 1"),
        ("a,b,y\n1,2,3\n", ["z"], "bad.csv has no column \\['z'\\]: known: a, b, y"),
        ("a,b,y\n1,2,3\n", [], "bad.csv has no column"),
        ("a,b,y\n1,2,3\n", 3, "targets=3 does not fit the 3 columns of bad.csv: one input column must stay"),
        ("a,b,y\n1,2,3\n", 0, "targets=0 does not fit"),
        ("y\n1\n", 1, "targets=1 does not fit the 1 columns"),
        ("a,b,y\n1,2,3\n", ["a", "b", "y"], "x is empty|one input column must stay"),
        ("a,y,y\n1,2,3\n", 1, "bad.csv"),  # else a column is dropped in silence
        ("1,2,3\n4,5,6\n", 1, "bad.csv"),  # else a sample is taken for the header
    ],
)
def test_broken_csv_is_refused(tmp_path, text, targets, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        mf.from_file(path, targets=targets)


@pytest.mark.parametrize("content", [bytes(range(256)), b"a,y\n" + b"1" * 200_000 + b",1\n"])
def test_what_is_no_csv_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.csv"):
        mf.from_file(path)


@pytest.mark.parametrize("name", ["mine.pkl", "mine.pt", "mine", "mine.npy"])
def test_other_endings_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match=f"cannot read {name}: the ending is .*; known: .npz, .csv"):
        mf.from_file(tmp_path / name)
    assert _unpickled == []


@pytest.mark.parametrize("path", ["absent.npz", "."])
def test_a_missing_file_is_named(tmp_path, path):
    with pytest.raises(ValueError, match="no such file: .*" + (tmp_path / path).name):
        mf.from_file(tmp_path / path)
