"""Data of any shape: images, tokens, classes of positions, and what perceptrons and modules take of them."""

import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.problem.fitted_data import for_perceptron, must_suit_modules, with_classes


class Tagger(torch.nn.Module):
    """Three classes for each of the tokens 0, 1, 2"""

    def __init__(self, n):
        super().__init__()
        self.tok, self.out = torch.nn.Embedding(3, n), torch.nn.Linear(n, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.tok(x)))


class Plain(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.read, self.out = torch.nn.Linear(3, n), torch.nn.Linear(n, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.read(x)))


CROSS, SQUARED = mf.loss("cross_entropy"), mf.loss("squared")


def test_samples_of_any_shape_are_kept():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    data = mf.Dataset(images, np.ones((2, 7, 6)), images[:1], np.zeros((1, 7, 6)))
    assert torch.equal(data.x, torch.from_numpy(images).double())
    assert (data.inputs, data.outputs, data.samples, data.points) == (60, 42, 2, 3)
    assert data.all_x.shape == (3, 3, 4, 5)
    assert torch.equal(data.test_targets, torch.zeros(1, 7, 6).double())


@pytest.mark.parametrize("kind", [np.uint8, np.int64, ">i4", torch.int32, torch.uint8])
def test_arrays_of_integers_stay_integers(kind):
    rows = [[3, 0, 1], [2, 2, 7]]
    tokens = torch.tensor(rows, dtype=kind) if isinstance(kind, torch.dtype) else np.array(rows, dtype=kind)
    data = mf.Dataset(tokens, [1, 2], tokens[:1])
    assert data.x.dtype == data.x_test.dtype == data.all_x.dtype == torch.int64
    assert data.x.tolist() == rows
    assert data.y.dtype == torch.float64
    assert data != mf.Dataset(np.array(rows, dtype=float), [1, 2], np.array(rows[:1], dtype=float))


def test_integers_beside_real_numbers_are_real():
    for x, x_test in (([[1]], [[0.5]]), ([[0.5]], [[1]])):
        data = mf.Dataset(np.array(x), [1], np.array(x_test))
        assert data.x.dtype == data.x_test.dtype == torch.float64


def test_a_perceptron_takes_matrices_of_real_numbers():
    images, tokens = mf.Dataset(np.ones((2, 3, 3)), [1, 2]), mf.Dataset(np.array([[-1, 2]]), [1], np.array([[3, 4]]))
    with pytest.raises(
        ValueError, match=r"received x of shape \(2, 3, 3\); give x.flatten\(1\), or as network a module"
    ):
        mf.Problem(images)
    with pytest.raises(ValueError, match=r"received y of shape \(2, 1, 3\)"):
        mf.Problem(mf.Dataset([[1], [2]], np.ones((2, 1, 3))))
    real = for_perceptron(tokens, SQUARED)
    assert real == mf.Dataset([[-1.0, 2.0]], [1], [[3.0, 4.0]])
    assert for_perceptron(real, SQUARED) is real
    with pytest.raises(ValueError, match=r"row 1 of y is not counted by the loss 'cross_entropy'.*leave it out"):
        mf.Problem(mf.Dataset([[1], [2]], [[0, 1], [0, 0]]), loss="cross_entropy")


def test_tokens_are_not_negative():
    good = mf.Dataset(np.array([[0, 2]]), [1])
    must_suit_modules(good)
    must_suit_modules(mf.Dataset([[-1.5]], [1]))
    with pytest.raises(
        ValueError, match=r"x_test holds integers.*received -3 at position \[1, 0\]; give x_test.double"
    ):
        must_suit_modules(mf.Dataset(np.array([[0, 2]]), [1], np.array([[0, 1], [-3, 1]])))


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_classes_of_samples_become_one_hot():
    data = with_classes(mf.Dataset(np.ones((3, 2)), [2, 0, -100], np.ones((1, 2)), [1]), (3,), CROSS)
    assert data.y.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert data.y_test.tolist() == [[0, 1, 0]]
    assert data.x_test is not None
    assert with_classes(data, (3,), CROSS) is data
    assert with_classes(data, (3,), SQUARED) is data


@pytest.mark.parametrize("column", [False, True])
def test_classes_of_positions_become_one_hot(column):
    labels = torch.randint(-1, 4, (5, 2, 3), generator=torch.Generator().manual_seed(0))
    given = labels[..., None] if column else labels
    y = with_classes(mf.Dataset(np.ones((5, 2)), given), (2, 3, 4), CROSS).y
    assert y.shape == (5, 2, 3, 4)
    for place in np.ndindex(5, 2, 3):
        label = int(labels[place])
        assert y[place].tolist() == [float(c == label) for c in range(4)]


@pytest.mark.parametrize(
    ("y", "outputs", "loss", "message"),
    [
        ([[1.0, 0.5]], (2, 3), CROSS, r"received the label 0.5 at position \[0, 1\]; classes must be whole"),
        ([[1.0, 3.0]], (2, 3), CROSS, r"received the label 3 at position \[0, 1\]; the network has 3 outputs.* 0 to 2"),
        ([[4.0]], (3,), CROSS, "received the label 4 at row 0; the network has 3 outputs, for the classes 0 to 2"),
        ([[-1, -100]], (2, 3), CROSS, "y has no label that is counted"),
        ([[1.0, 0.0]], (3,), CROSS, r"received \(3,\) and \(2,\) for one sample; or give classes, of shape \(1,\)"),
        ([[1.0]], (2, 3), CROSS, r"received \(2, 3\) and \(1,\) for one sample; or give classes, of shape \(2,\)"),
        ([[1.0, 0.0]], (2, 3), SQUARED, r"received \(2, 3\) and \(2,\) for one sample; take the loss 'cross_entropy'"),
        ([[1.0]], (2,), mf.loss("logistic"), r"received \(2,\) and \(1,\) for one sample"),
    ],
)
def test_targets_that_do_not_fit_the_outputs_are_refused(y, outputs, loss, message):
    with pytest.raises(ValueError, match=message):
        with_classes(mf.Dataset([[1.0]], y), outputs, loss)


def test_test_targets_are_named():
    with pytest.raises(ValueError, match=r"y_test does not fit.*the label 9"):
        with_classes(mf.Dataset([[1.0]], [1], [[1.0]], [9]), (3,), CROSS)


def test_rows_that_would_not_fit_in_memory_are_refused(monkeypatch):
    monkeypatch.setattr("meanfield.checking.checks.free_memory", lambda: 1e3)
    with pytest.raises(MemoryError, match="a row of 100 numbers for each of 4 labels in y needs"):
        with_classes(mf.Dataset(np.ones((2, 2)), [[1, 2], [3, 4]]), (2, 100), CROSS)


# ---- a problem with a module -----------------------------------------------------------------------------------------


def test_a_problem_says_what_kind_of_numbers_its_module_takes():
    tokens, labels = np.array([[0, 1, 2]] * 2), [[1, 2, 0]] * 2
    problem = mf.Problem(mf.Dataset(tokens, labels), Tagger, loss="cross_entropy")
    assert problem.data.x.dtype == torch.int64
    assert problem.data.y.argmax(-1).tolist() == labels
    assert problem.with_steps(3).data == problem.data
    with pytest.raises(
        ValueError, match=r"fails for x of shape \(2, 3\) and torch.float64.*give tokens as integers, x.long"
    ):
        mf.Problem(mf.Dataset(tokens.astype(float), labels), Tagger, loss="cross_entropy")
    with pytest.raises(ValueError, match=r"fails for x of shape \(2, 3\) and torch.int64.*give real numbers, x.double"):
        mf.Problem(mf.Dataset(tokens, [1, 2]), Plain)
    for where in ("x", "x_test"):  # the largest token stands behind the few samples that a trial sees
        rows = {"x": np.tile(tokens[:1], (9, 1)), "x_test": np.tile(tokens[:1], (9, 1))}
        rows[where][7, 1] = 3
        with pytest.raises(
            ValueError,
            match=r"fails for x of shape \(3, 3\).*IndexError.*tokens go up to 3.*'tok.weight' has 3 rows: give it 4",
        ):
            mf.Problem(mf.Dataset(rows["x"], [[1, 2, 0]] * 9, rows["x_test"]), Tagger, loss="cross_entropy")
    with pytest.raises(ValueError, match="tokens, and those must not be negative: received -1"):
        mf.Problem(mf.Dataset(tokens - 1, labels), Tagger, loss="cross_entropy")
    with pytest.raises(ValueError, match=r"outputs and y must have the same shape: received \(3, 3\) and \(2,\)"):
        mf.Problem(mf.Dataset(tokens, np.ones((2, 2))), Tagger, loss="cross_entropy")
