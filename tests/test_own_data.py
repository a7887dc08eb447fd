"""Own data: frames and files of any kind give the same samples; classes, division and scaling are those that were asked for."""

import math
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from sklearn.preprocessing import LabelBinarizer, Normalizer, StandardScaler
from torch import nn

import meanfield as mf
from meanfield.files.storage import load, save
from solvers import FiniteWidth
from solvers.command_line.main import main

X = np.array([[1.0, 2.5], [-4e-3, 0.0], [3.0, 1.0], [2.0, -1.0]])
KINDS = ["cat", "ant", "cat", "bee"]
TABLE = {"a": X[:, 0], "b": X[:, 1], "kind": KINDS}
ROWS = [[0.0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]]  # of ant, bee, cat


class Polars:
    """As much of a polars frame as is used"""

    def __init__(self, table):
        self.columns, self._table = list(table), table

    def __getitem__(self, name):
        return pd.Series(self._table[name])


FRAMES = {
    "dict": lambda path: mf.from_frame(TABLE, name="mine"),
    "pandas": lambda path: mf.from_frame(pd.DataFrame(TABLE, index=list("pqrs")), name="mine"),
    "categorical": lambda path: mf.from_frame(pd.DataFrame(TABLE).astype({"kind": "category"}), name="mine"),
    "polars": lambda path: mf.from_frame(Polars(TABLE), name="mine"),
    "pyarrow": lambda path: mf.from_frame(pyarrow.table(TABLE), name="mine"),
    "arrays": lambda path: mf.from_arrays(X, KINDS, name="mine"),
    "csv": lambda path: _text(path / "mine.csv", ","),
    "tsv": lambda path: _text(path / "mine.tsv", "\t"),
    "npz": lambda path: _npz(path),
    "parquet": lambda path: _parquet(path, None),
    "parquet of a frame with an index": lambda path: _parquet(path, list("pqrs")),
}


def _text(path, separator):
    pd.DataFrame(TABLE).to_csv(path, sep=separator, index=False)
    return mf.from_file(path)


def _npz(path):
    np.savez(path / "mine.npz", x=X, y=np.array(KINDS))
    return mf.from_file(path / "mine.npz")


def _parquet(path, index):
    pd.DataFrame(TABLE, index=index).to_parquet(path / "mine.parquet")
    return mf.from_file(path / "mine.parquet")


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_and_files_of_all_kinds_hold_the_same_samples(tmp_path, kind):
    assert FRAMES[kind](tmp_path) == mf.Dataset(X, ROWS, name="mine", classes=("ant", "bee", "cat"))


def test_parquet_needs_pyarrow_and_says_so(tmp_path, monkeypatch):
    _parquet(tmp_path, None)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"bad\.parquet: no intact parquet file"):
        mf.from_file(tmp_path / "bad.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"mine\.parquet: parquet files are read by pyarrow.*pip install pyarrow"):
        mf.from_file(tmp_path / "mine.parquet")


@pytest.mark.parametrize(
    ("labels", "one_hot", "y", "classes"),
    [
        (["no", "yes", "yes"], None, [[-1], [1], [1]], ("no", "yes")),
        (["no", "yes", "yes"], True, [[1, 0], [0, 1], [0, 1]], ("no", "yes")),
        ([True, False, True], None, [[1], [-1], [1]], ("False", "True")),
        ([10, 9, 9], None, [[10], [9], [9]], ()),  # numbers stay numbers
        ([10, 9, 9], False, [[1], [-1], [-1]], ("9", "10")),  # by number, not by their texts
        ([10, 9, 9], True, [[0, 1], [1, 0], [1, 0]], ("9", "10")),
        (pd.Series(["b", " a", "b"]), None, [[1], [-1], [1]], ("a", "b")),
    ],
)
def test_labels_become_classes_with_names(labels, one_hot, y, classes):
    data = mf.from_arrays(np.arange(3.0)[:, None], labels, one_hot=one_hot)
    assert (data.y.tolist(), data.classes) == (y, classes)


def test_classes_of_test_samples_are_those_of_training_samples():
    data = mf.from_arrays(X, KINDS, X[:2], ["bee", "cat"])
    assert (data.y.tolist(), data.y_test.tolist()) == (ROWS, [[0, 1, 0], [0, 0, 1]])


REFUSED = {
    "missing input": ({"a": [1.0, None, 2.0], "y": [1, 2, 3]}, "missing.*, at row 1, column 'a'; remove or fill"),
    "NaN": (pd.DataFrame({"a": [1.0, np.nan], "y": [1, 2]}), "missing.*, at row 1, column 'a'"),
    "pandas' NA": (pd.DataFrame({"a": pd.array([1, None], "Int64"), "y": [1, 2]}), "missing.*, at row 1, column 'a'"),
    "null": (pyarrow.table({"a": [1, None], "y": [1, 2]}), "missing.*, at row 1, column 'a'"),
    "missing target": ({"a": [1.0, 2.0], "y": [np.nan, 1]}, "y holds 1 value.* missing.*, at row 0, column 'y'"),
    "missing label": ({"a": [1.0, 2, 3], "y": ["p", None, "q"]}, "y holds 1 value.* missing.*, at row 1, column 'y'"),
    "words among numbers": ({"a": [1.0, 2, 3], "y": [1, "p", 2]}, "words among numbers.*'p', at row 1, column 'y'"),
    "words as inputs": ({"a": ["p", "q"], "y": [1, 2]}, "x holds 2 value.* text: the first, 'p', at row 0, column 'a'"),
    "lengths": (
        {"a": [1.0, 2.0], "b": [1.0], "y": [1, 2]},
        r"columns of one length: received 2 in 'a', .*\(1,\) in 'b'",
    ),
    "rows": ({"a": [1.0, 2.0], "y": [1, 2, 3]}, "x and y must have the same number of rows: received 2 and 3"),
    "one class": ({"a": [1.0, 2.0], "y": ["p", "p"]}, "y holds one class only, 'p'"),
    "names": ({"a": [1.0, 2, 3], "y": ["p", "q", "r"]}, "y holds 3 labels that are all different .'p', 'q', .."),
    "no frame": (X, r"frame must be a data frame or a dict of columns: received .*mf.from_arrays\(x, y\)"),
    "one column": ({"y": [1]}, "frame must have inputs and targets: received the columns .'y'."),
    "twice": (pd.DataFrame(X, columns=["a", "a"]), "frame names the column 'a' twice"),
    "unnamed": ({"a": [1], "": [1], "y": [1]}, r"frame has no name for its column 1 \(''\)"),
    "no index": ({"": [3, 5], "a": [1, 2], "y": [1, 2]}, r"column 1 has no name .*does not count the rows"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_frames_that_do_not_fit_are_refused_with_the_place(kind):
    frame, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        mf.from_frame(frame)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("1,p\n2,\n", "line 3, column 'y': received ''; a value is missing"),
        ("1,2\n2,p\n", "line 3, column 'y': received 'p'; a number is needed"),
        ("p,1\nq,2\n", "line 2, column 'a': received 'p'; a number is needed"),
    ],
)
def test_words_in_csv_files_are_refused_where_they_are_no_classes(tmp_path, cells, message):
    (tmp_path / "mine.csv").write_text("a,y\n" + cells)
    with pytest.raises(ValueError, match=f"mine.csv: {message}"):
        mf.from_file(tmp_path / "mine.csv")


@pytest.mark.parametrize("start", [0, 1])  # pandas counts from 0, R from 1
def test_an_index_is_no_input_and_no_target(tmp_path, start):
    path = tmp_path / "mine.csv"
    pd.DataFrame(TABLE, index=np.arange(start, 4 + start)).to_csv(path)
    frame = {"Unnamed: 0": np.arange(start, 4 + start)} | TABLE
    for read in (lambda: mf.from_file(path), lambda: mf.from_frame(frame, name="mine")):
        with pytest.warns(UserWarning, match="counts the rows: it is left out as an index"):
            assert read() == mf.Dataset(X, ROWS, name="mine", classes=("ant", "bee", "cat"))


def _numbered(n, classes=1):
    return {"x": np.arange(n)[:, None], "y": np.arange(n) % classes if classes > 1 else np.arange(n)}


def _rows(x):
    return x[:, 0].tolist()


def test_a_shuffle_moves_rows_with_their_targets():
    data = mf.from_arrays(**_numbered(50), n_test=20, n_train=25, shuffle=3)
    train, test = _rows(data.x), _rows(data.x_test)
    assert (_rows(data.y), _rows(data.y_test)) == (train, test)
    assert (len({*train, *test}), len(train), len(test)) == (45, 25, 20)
    assert train != sorted(train)
    assert data == mf.from_arrays(**_numbered(50), n_test=20, n_train=25, shuffle=3)
    assert data != mf.from_arrays(**_numbered(50), n_test=20, n_train=25, shuffle=4)
    still = mf.from_arrays(**_numbered(50), n_test=20, n_train=25)
    assert (_rows(still.x), _rows(still.x_test)) == ([*range(25)], [*range(30, 50)])


@pytest.mark.parametrize("shuffle", [None, 0])
def test_each_class_gets_its_share(shuffle):
    y = np.repeat([0, 1, 2], [61, 30, 9])
    y = y[np.random.default_rng(0).permutation(100)]
    data = mf.from_arrays(np.arange(100)[:, None], y, n_test=20, n_train=60, shuffle=shuffle, stratify=True)
    shares = [Counter(_rows(t)) for t in (data.y, data.y_test)]
    assert shares == [{0: 37, 1: 18, 2: 5}, {0: 12, 1: 6, 2: 2}]  # 36.6, 18, 5.4; 12.2, 6, 1.8
    assert not {*_rows(data.x)} & {*_rows(data.x_test)}
    assert y[data.x[:, 0]].tolist() == _rows(data.y)
    assert (_rows(data.x) == sorted(_rows(data.x))) is (shuffle is None)
    rare = mf.from_arrays(np.zeros((9, 1)), [0] * 8 + [1], n_test=8 - 1, stratify=True)
    assert Counter(_rows(rare.y)) == {0: 1, 1: 1}  # a class of one sample is trained on


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n_test": 6}, "n_test=6 leaves no training sample of the 6 rows"),
        ({"n_test": 2, "n_train": 5}, "n_train=5 and n_test=2 exceed the 6 rows"),
        (
            {"n_test": 4, "stratify": True},
            "n_test=4 leaves a class without training samples, of 3 classes with 2, 2, 2",
        ),
        ({"n_train": 2, "stratify": True}, "n_train=2 leaves a class without training samples"),
        ({"n_test": 1, "stratify": True, "y": np.arange(6)}, "stratify=True is for classes: received 6 different"),
        ({"scale": "whiten"}, "unknown scale: received 'whiten'; known: 'centre', the mean"),
        ({"scale": ("unit_norm", "centre")}, "scale takes 'centre' or 'standardise', then 'unit_norm'"),
        ({"scale": ("centre", "standardise")}, "scale takes 'centre' or 'standardise', then"),
        ({"scale": "unit_norm"}, "row 0 of x is zero, so that it has no direction"),
        ({"one_hot": False}, "3 classes need one-hot targets: leave out one_hot=False"),
        ({"one_hot": True, "y": np.arange(6) / 2}, "y holds 0.5 in row 1: classes are words or whole numbers"),
        ({"one_hot": True, "y": np.ones((6, 2))}, r"classes are one column: received y of shape \(6, 2\)"),
        ({"x_test": [[1]], "n_test": 1}, "x_test is there already"),
        ({"x_test": [[1]], "y_test": ["p"]}, "y holds no words: give y and y_test alike"),
    ],
)
def test_divisions_and_scalings_that_do_not_fit_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        mf.from_arrays(**_numbered(6, 3) | asked)


def test_scalings_are_those_of_scikit_learn_and_of_training_samples_alone():
    x = np.random.default_rng(0).normal([1.0, -2.0, 5.0, 0.1], [1.0, 3.0, 0.1, 0.0], (30, 4))
    train, new = x[:20], x[25:] + 1.0
    root = math.sqrt(4)
    standard, centred = StandardScaler().fit(train), StandardScaler(with_std=False).fit(train)
    right = {
        "centre": centred.transform,
        "standardise": standard.transform,
        "unit_norm": lambda x: root * Normalizer().transform(x),
        ("standardise", "unit_norm"): lambda x: root * Normalizer().transform(standard.transform(x)),
    }
    for scale, reference in right.items():
        data = mf.from_arrays(x, x[:, 0], n_test=10, scale=scale)
        for found, given in ((data.x, train), (data.x_test, x[20:]), (data.transform(new), new)):
            np.testing.assert_allclose(found, reference(given), rtol=1e-12, atol=1e-12)
    assert data.transform(x[:1]).shape == (1, 4)
    with pytest.raises(
        ValueError, match=r"samples of the shape \(4,\), as those that were transformed: received \(3,\)"
    ):
        data.transform(x[:, :3])


def test_targets_are_scaled_by_training_samples_and_outputs_told_in_their_units(tmp_path):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 2)), rng.normal([100.0, 3.0], [20.0, 0.1], (12, 2))
    scaler = StandardScaler().fit(y[:8])
    data = mf.from_arrays(x, y, n_test=4, scale_targets="standardise")
    for found, given in ((data.y, y[:8]), (data.y_test, y[8:]), (data.transformation.targets(y[8:]), y[8:])):
        np.testing.assert_allclose(found, scaler.transform(given), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(data.x, x[:8])
    run = FiniteWidth(4)(mf.Problem(data, training=mf.Training(0.1, 1)))
    told = data.transformation.outputs(run.f)  # (R, P, C)
    np.testing.assert_allclose(told[-1], scaler.inverse_transform(run.f[-1]), rtol=1e-12)
    assert load(save(run, tmp_path / "run.nc")).problem.data == data
    both = mf.from_frame({"a": x[:, 0], "y": y[:, 0]}, scale="centre", scale_targets="centre", n_test=4)
    np.testing.assert_allclose(both.transformation.outputs(both.y_test)[:, 0], y[8:, 0], rtol=1e-12)
    assert float(both.transformation.target_scale) == 1.0
    plain = mf.from_arrays(x, y, scale="centre")
    assert torch.equal(plain.transformation.outputs(plain.y), plain.y)
    for wrong, message in (
        ({"scale_targets": "unit_norm"}, "unknown scale_targets: received 'unit_norm'; known: centre, standardise"),
        ({"y": ["p", "q"] * 6, "scale_targets": "centre"}, "targets that are numbers: received classes"),
    ):
        with pytest.raises(ValueError, match=message):
            mf.from_arrays(**{"x": x, "y": y} | wrong)
    with pytest.raises(ValueError, match=r"f must end with the shape of targets, \(2,\): received \(8, 1\)"):
        data.transformation.outputs(run.f[0][:, :1])


SIZES = ["small", "large", "middle", "small"]


@pytest.mark.parametrize("kind", ["series", "categorical", "pandas", "pyarrow", "parquet"])
def test_ordered_categories_keep_their_order(tmp_path, kind):
    order = pd.CategoricalDtype(["tiny", "small", "middle", "large"], ordered=True)
    frame = pd.DataFrame({"a": np.arange(4.0), "size": pd.Series(SIZES, dtype=order)})
    frame.to_parquet(tmp_path / "mine.parquet")
    data = {
        "series": lambda: mf.from_arrays(X, frame["size"]),
        "categorical": lambda: mf.from_arrays(X, pd.Categorical(SIZES, dtype=order)),
        "pandas": lambda: mf.from_frame(frame),
        "pyarrow": lambda: mf.from_frame(pyarrow.Table.from_pandas(frame)),
        "parquet": lambda: mf.from_file(tmp_path / "mine.parquet"),
    }[kind]()
    assert data.classes == ("small", "middle", "large")  # of those that occur
    assert data.y.argmax(1).tolist() == [0, 2, 1, 0]
    assert mf.from_arrays(X, frame["size"].astype(str)).classes == ("large", "middle", "small")


def test_images_of_bytes_are_scaled_and_digits_are_of_unit_norm():
    images = np.random.default_rng(0).integers(1, 255, (6, 1, 4, 4), np.uint8)
    data = mf.from_arrays(images, [0, 1, 2] * 2, scale="unit_norm", one_hot=True)
    assert data.x.dtype == torch.float64
    torch.testing.assert_close(data.x.square().flatten(1).sum(1), torch.full((6,), 16.0, dtype=torch.float64))
    assert mf.from_arrays(images, [0, 1, 2] * 2).x.dtype == torch.int64  # else they are tokens
    digits = mf.digits(n_train=4, n_test=2)
    torch.testing.assert_close(digits.transform(3 * digits.x_test), digits.x_test)
    plain = mf.Dataset(X, [1, 2, 3, 4])
    assert torch.equal(plain.transform(X[:2]), plain.x[:2])
    with pytest.raises(ValueError, match="the new x and x must have the same number of columns: received 1 and 2"):
        plain.transform(X[:, :1])


def test_what_was_done_to_inputs_and_classes_survive_storage(tmp_path):
    table = {"a": np.arange(6.0), "b": [0.0, 1, 0, 2, 3, 1], "kind": ["p", "q", "p", "q", "r", "r"]}
    data = mf.from_frame(table, scale=("standardise", "unit_norm"), n_test=2)
    found = load(save(FiniteWidth(4)(mf.Problem(data, training=mf.Training(0.1, 1))), tmp_path / "run.nc")).problem.data
    assert found == data
    assert torch.equal(found.transform(X), data.transform(X))
    assert data != mf.from_frame(table, scale="standardise", n_test=2)


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [3, 8, 8, 3], ["a", "b", "b", "a"], [-1, 1, 1, -1]])
def test_losses_get_classes_as_they_take_them(labels):
    """One column of two kinds is -1 and +1 for the logistic loss, rows for the cross-entropy; test samples may lack one."""
    x = np.arange(4.0)[:, None]
    signs, rows = [[-1], [1], [1], [-1]], [[1, 0], [0, 1], [0, 1], [1, 0]]
    data = mf.from_arrays(x, labels, x[:1], labels[:1])
    logistic, entropy = (mf.Problem(data, loss=loss).data for loss in ("logistic", "cross_entropy"))
    assert (logistic.y.tolist(), logistic.y_test.tolist()) == (signs, signs[:1])
    assert (entropy.y.tolist(), entropy.y_test.tolist()) == (rows, rows[:1])
    if labels[0] != -1:
        assert logistic.classes == entropy.classes == tuple(map(str, labels[:2]))
        assert mf.Problem(entropy, loss="logistic").data == logistic
    by_layer = mf.Architecture(mf.Network(1), frozen=("input.*",))
    assert mf.Problem(data, by_layer, loss="cross_entropy").data.y.tolist() == rows


def test_whole_numbers_are_classes_for_the_cross_entropy():
    y = [5, 3, 8, 3]
    data = mf.Problem(mf.Dataset(X, y), loss="cross_entropy").data
    assert data.y.tolist() == LabelBinarizer().fit_transform(y).tolist()
    assert data.classes == ("3", "5", "8")
    assert mf.Problem(mf.Dataset(X, y)).data.y.tolist() == [[5], [3], [8], [3]]  # numbers for the squared loss
    for wrong in ([0.5, 1, 2, 2], [-100, 0, 1, 1], [1, 1, 1, 1]):
        with pytest.raises(ValueError, match=r"received 1 column.*one column of whole numbers from 0 on"):
            mf.Problem(mf.Dataset(X, wrong), loss="cross_entropy")
    with pytest.raises(ValueError, match="received the label 5"):
        mf.Problem(mf.Dataset(X, y), loss="logistic")


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("one_hot", [False, True])
def test_named_classes_follow_the_outputs_of_a_module(outputs, one_hot):
    data = mf.from_arrays(X, ["a", "b", "b", "a"], one_hot=one_hot)
    net = lambda n: nn.Sequential(nn.Linear(2, n), nn.Tanh(), nn.Linear(n, outputs))  # noqa: E731
    found = mf.Problem(data, net, loss="squared" if outputs == 1 else "cross_entropy").data.y
    assert found.tolist() == ([[-1], [1], [1], [-1]] if outputs == 1 else [[1, 0], [0, 1], [0, 1], [1, 0]])


def test_the_shell_has_the_same_options(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    pd.DataFrame(TABLE | {"a": range(4)}).to_csv(path, index=False)
    flags = "--targets kind --n-test 1 --n-train 2 --shuffle 1 --scale centre unit_norm --one-hot True".replace(
        "--", "--data."
    )
    arguments = ["--solver.particles", "16", "--training.steps", "1", "--training.learning-rate", "0.1"]
    out = ["--out", str(tmp_path / "run.nc")]
    assert main(["flow", *out, "--data", "file", "--data.path", str(path), *flags.split(), *arguments]) == 0
    asked = {"n_test": 1, "n_train": 2, "shuffle": 1, "scale": ("centre", "unit_norm"), "one_hot": True}
    assert load(tmp_path / "run.nc").problem.data == mf.from_file(path, "kind", **asked)
    assert main(["flow", "--out", "x.nc", "--data", "file", "--data.path", str(path), "--data.scale", "white"]) == 2
    assert "unknown scale: received 'white'; known: 'centre'" in capsys.readouterr().err
