"""Datasets: what the constructors promise holds, and broken input is refused with its place named."""

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
    data = mf.Problem(data).data  # for a perceptron integers are real numbers
    assert data.x.dtype == data.y.dtype == torch.float64
    assert torch.equal(data.x, torch.tensor([[1, 2, 3], [4, 5, 6]]).double())
    assert torch.equal(data.y, torch.tensor([[7], [8]]).double())  # (P,) is taken as (P, 1)
    assert (data.samples, data.inputs, data.outputs) == (2, 3, 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((3, 2)), "y": np.ones(4)}, "x and y must have the same number of rows: received 3 and 4"),
        ({"x": np.ones(3), "y": np.ones(3)}, "x must have two dimensions .* received shape \\(3,\\)"),
        ({"x": np.ones((3, 2, 2)), "y": np.ones(4)}, "x and y must have the same number of rows: received 3 and 4"),
        ({"x": np.ones((3, 2, 2)), "y": np.ones((3, 0, 2))}, "y is empty: received shape \\(3, 0, 2\\)"),
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
        (
            {"x": np.ones((1, 2, 3)), "y": [1], "x_test": np.ones((1, 3, 2))},
            "x and x_test must have samples of the same shape: received \\(2, 3\\) and \\(3, 2\\)",
        ),
        (
            {"x": [[1]], "y": np.ones((1, 2, 3)), "x_test": [[1]], "y_test": [[1]]},
            "y and y_test must have samples of the same shape: received \\(2, 3\\) and \\(1,\\)",
        ),
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


def test_named_classes_are_signs_or_one_hot_rows():
    """Two names: -1 is the first; 0 and 1 count them. More: a column for each."""
    x, signs = [[1.0], [2.0], [3.0]], [[-1.0], [1.0], [1.0]]
    for y in ([0, 1, 1], [-1, 1, 1], [False, True, True], signs):
        data = mf.Dataset(x, y, x, y, classes=("cat", "dog"))
        assert (data.y.tolist(), data.y_test.tolist(), data.classes) == (signs, signs, ("cat", "dog"))
    rows = [[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]
    for y in ([2, 0, 1], rows):
        data = mf.Dataset(x, y, x[:1], y[:1], classes=["a", "b", "c"])
        assert (data.y.tolist(), data.y_test.tolist(), data.classes) == (rows, rows[:1], ("a", "b", "c"))
    assert mf.Dataset(x, rows, classes=("a", "b", "c")) != mf.Dataset(x, rows)
    assert mf.Dataset(x, rows).classes == ()
    assert "classes=3" in repr(data)


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        ([0, 1, 2], ("a", "b"), "y does not fit its 2 classes: received 2 in row 2; give -1 and .1, or 0 and 1"),
        (
            [0, 3, 1],
            ("a", "b", "c"),
            "y does not fit its 3 classes: received 3 in row 1; give whole numbers from 0 to 2",
        ),
        ([0, 0.5, 1], ("a", "b", "c"), "received 0.5 in row 1"),
        ([0, -1, 1], ("a", "b"), "received -1 in row 1"),
        (np.ones((3, 2)), ("a", "b", "c"), r"classes holds 3 names, but y has samples of shape \(2,\)"),
        ([0, 1, 0], ("a",), "classes holds one name, 'a': at least two"),
        ([0, 1, 0], ("a", "a"), "classes holds the name 'a' twice"),
        ([0, 1, 0], (0, 1), r"classes\[0\] must be a name: received 0"),
        ([0, 1, 0], "ab", "classes must be names: received 'ab'"),
    ],
)
def test_targets_that_are_none_of_the_named_classes_are_refused(y, classes, message):
    with pytest.raises(ValueError, match=message):
        mf.Dataset(np.ones((3, 1)), y, classes=classes)


def test_classes_of_digits_and_mixtures_have_names():
    two, three = mf.digits((3, 8), 8, 0), mf.digits((3, 8, 5), 8, 0)
    assert (two.classes, three.classes) == (("8", "3"), ("3", "8", "5"))  # the first is +1
    assert mf.digits((3, 8), 8, 0, one_hot=True).classes == ("3", "8")
    images, labels = load_digits(return_X_y=True)
    for data in (two, three):
        at = data.y.argmax(1) if data.y.shape[1] > 1 else (data.y[:, 0] > 0).long()
        for row, index in zip(data.x, at, strict=True):
            near = np.abs(images / np.linalg.norm(images, axis=1, keepdims=True) - (row / row.norm()).numpy()).max(1)
            assert data.classes[index] == str(labels[near.argmin()])
    assert mf.gaussian_mixture(4, 2).classes == ("1", "0")
    assert mf.gaussian_mixture(4, 2, classes=3).classes == ("0", "1", "2")


def test_all_points_are_the_training_samples_and_then_the_test_samples():
    assert mf.Dataset([[1.0], [3.0]], [1.0, 2.0], [[2.0]]).all_x.tolist() == [[1.0], [3.0], [2.0]]
    assert mf.Dataset([[1.0]], [1.0]).all_x.tolist() == [[1.0]]


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
        (lambda: mf.gaussian_mixture(n_test=-1), "n_test must be at least 0: received -1"),
        (lambda: mf.gaussian_mixture(n_train=float("nan")), "n_train must be a whole number: received nan"),
        (lambda: mf.gaussian_mixture(n_train=float("inf")), "n_train must be a whole number: received inf"),
        (lambda: mf.gaussian_mixture(n_train="5"), "n_train must be a number: received '5'"),
        (
            lambda: mf.gaussian_mixture(n_train=10**400),
            "n_train must lie within 64 bits: received a whole number of",
        ),
        (lambda: mf.gaussian_mixture(seed=2**32), r"seed must be below 2\^32, .*: received 4294967296"),
        (lambda: mf.gaussian_mixture(separation=np.complex128(1j)), "separation must be a number: received"),
        (lambda: mf.single_index_teacher(inputs=2.5), "inputs must be a whole number: received 2.5"),
        (lambda: mf.single_index_teacher(noise=float("nan")), "noise must be non-negative and finite: received nan"),
        (lambda: mf.multi_index_teacher(directions=0), "directions must be at least 1: received 0"),
        (lambda: mf.multi_index_teacher(seed=-1), "seed must be at least 0: received -1"),
        (
            lambda: mf.single_index_teacher(link=None),
            "link must be a text or an Activation or a function: received None",
        ),
        (lambda: mf.multi_index_teacher(link=lambda h: h.sum(1)), r"shape of its argument \(96, 2\): received \(96,\)"),
        (
            lambda: mf.multi_index_teacher(link=lambda h: h + 0j),
            r"real numbers of .*: received \(96, 2\), torch.complex128",
        ),
        (lambda: mf.multi_index_teacher(link=lambda h: 1.0), r"shape of its argument \(96, 2\): received float"),
        (lambda: mf.multi_index_teacher(link=torch.log), "y holds .* NaN or infinite"),
        (lambda: mf.digits(classes=None), "classes must be a sequence of whole numbers: received None"),
        (lambda: mf.digits(classes=3), "classes must be a sequence of whole numbers: received 3"),
        (lambda: mf.digits(one_hot="yes"), "one_hot must be True or False: received 'yes'"),
        (lambda: mf.digits(n_train=10**12), "n_train \\+ n_test = 1000000000064 exceeds the 360 images"),
        (lambda: mf.digits(seed=2**64), "seed must lie within 64 bits: received 18446744073709551616"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: mf.gaussian_mixture(n_train=10**12),
        lambda: mf.gaussian_mixture(n_train=10**15),
        lambda: mf.gaussian_mixture(inputs=10**12),
        lambda: mf.gaussian_mixture(classes=10**12),
        lambda: mf.multi_index_teacher(n_test=10**12),
        lambda: mf.multi_index_teacher(inputs=10**8, directions=10**8),
    ],
)
def test_data_beyond_memory_is_refused_before_it_is_drawn(make):
    with pytest.raises(MemoryError, match=r"a data set of .* GB are available: take fewer samples, inputs or"):
        make()


def test_links_may_give_other_dtypes():
    """round(h) as integers, and an activation as an object, give the numbers of the same functions by name or in float64."""
    rounded = mf.single_index_teacher(link=lambda h: h.round().to(torch.int64), noise=0.1)
    assert rounded == mf.single_index_teacher(link=torch.round, noise=0.1)
    assert mf.single_index_teacher(link=mf.activation("tanh")) == mf.single_index_teacher()
