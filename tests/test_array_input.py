"""Arrays as users hold them: the same numbers as a plain copy, or one message that names the place."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import meanfield as mf
from meanfield.checking import array_input
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow

PLAIN = [[1.5, -2.0, 0.1], [4.0, 0.25, 7.0]]
A = np.array(PLAIN)
HALF = [[1.5, -2.0, 0.125], [4.0, 0.25, 7.0]]  # exact in 8 bits


@dataclass
class Frame:
    """A data frame of another library: it has columns and turns into an array"""

    array: np.ndarray

    @property
    def columns(self):
        return [f"column_{i}" for i in range(self.array.shape[1])]

    def to_numpy(self):
        return self.array


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


SAME: dict[str, tuple[Any, list]] = {
    "list": (PLAIN, PLAIN),
    "tuples": (tuple(map(tuple, PLAIN)), PLAIN),
    "list of arrays": (list(A), PLAIN),
    "list of tensors": (list(torch.tensor(PLAIN, dtype=torch.float64)), PLAIN),
    "list of series": ([pd.Series(row) for row in PLAIN], PLAIN),
    "integers in lists": ([[1, 2], [3, 4]], [[1.0, 2.0], [3.0, 4.0]]),
    "reversed": (A[::-1, ::-1], [row[::-1] for row in PLAIN[::-1]]),
    "every other": (np.repeat(A, 2, axis=1)[:, ::2], PLAIN),
    "Fortran": (np.asfortranarray(A), PLAIN),
    "transposed": (torch.tensor(PLAIN, dtype=torch.float64).T.contiguous().T, PLAIN),
    "big-endian": (A.astype(">f8"), PLAIN),
    "big-endian integers": (np.array([[1, 258]], dtype=">i4"), [[1.0, 258.0]]),
    "read-only": (_read_only(A), PLAIN),
    "no mask": (np.ma.array(A), PLAIN),
    "an empty mask": (np.ma.array(A, mask=np.zeros_like(A, dtype=bool)), PLAIN),
    "long double": (A.astype(np.longdouble), PLAIN),
    "float16": (np.array(HALF, dtype=np.float16), HALF),
    "bfloat16": (torch.tensor(HALF, dtype=torch.bfloat16), HALF),
    "float16 tensor": (torch.tensor(HALF, dtype=torch.float16), HALF),
    "boolean": (np.array([[True, False]]), [[1.0, 0.0]]),
    "boolean tensor": (torch.tensor([[True, False]]), [[1.0, 0.0]]),
    "uint8": (np.array([[0, 255]], dtype=np.uint8), [[0.0, 255.0]]),
    "2^53": (np.array([[2**53, -(2**53), 2**62]]), [[2.0**53, -(2.0**53), 2.0**62]]),
    "largest int32": (np.array([[2**31 - 1, -(2**31)]], dtype=np.int32), [[2.0**31 - 1, -(2.0**31)]]),
    "objects": (np.array([[1, 2.5, True], [np.float32(0.5), Fraction(1, 4), Decimal("0.1")]], dtype=object),
                [[1.0, 2.5, 1.0], [0.5, 0.25, 0.1]]),
    "objects in Fortran's order": (np.asfortranarray(A.astype(object)), PLAIN),
    "negated lazily": (torch.tensor([[1 + 2j, 3 - 4j]]).conj().imag, [[-2.0, 4.0]]),
    "data frame": (pd.DataFrame(A), PLAIN),
    "frame of columns": (pd.DataFrame({"a": [1, 2], "b": [0.1, 0.2], "c": [True, False]}), [[1.0, 0.1, 1.0], [2.0, 0.2, 0.0]]),
    "nullable frame": (pd.DataFrame({"a": pd.array([1, 2], dtype="Int64"), "b": pd.array([0.5, 1.5], dtype="Float64")}),
                       [[1.0, 0.5], [2.0, 1.5]]),
    "frame of objects": (pd.DataFrame({"a": [1, 2.5]}, dtype=object), [[1.0], [2.5]]),
    "categories": (pd.DataFrame({"a": pd.Categorical([3, 1])}), [[3.0], [1.0]]),
    "sparse column": (pd.DataFrame({"a": pd.arrays.SparseArray([0.0, 2.0])}), [[0.0], [2.0]]),
    "rows of a frame": (pd.DataFrame(A, index=["p", "q"]).iloc[::-1], PLAIN[::-1]),
    "another library": (Frame(A), PLAIN),
    "one sample": ([[1.0]], [[1.0]]),
    "all zero": (np.zeros((2, 2)), [[0.0, 0.0], [0.0, 0.0]]),
}  # fmt: skip
TOKENS = {"big-endian integers", "uint8", "largest int32"}  # arrays of integers that no float64 needs to hold


@pytest.mark.parametrize("kind", SAME)
def test_whatever_holds_numbers_gives_the_same_numbers(kind):
    given, expected = SAME[kind]
    data = mf.Dataset(given, range(len(expected)))
    assert data.x.dtype == (torch.int64 if kind in TOKENS else torch.float64)
    data = mf.Problem(data).data  # a perceptron's are real
    assert data.x.tolist() == expected  # bit for bit
    assert (data.x.dtype, data.x.device.type, data.x.requires_grad) == (torch.float64, "cpu", False)
    assert data.x.is_contiguous()  # a transposed layout would round differently in matrix products
    assert mf.Dataset(given, given, given, given).y_test.tolist() == expected


@pytest.mark.parametrize(
    "y", [[1, -1], (1.0, -1.0), np.array([-1, 1], dtype=">i2")[::-1], pd.Series([1, -1]), torch.tensor([1, -1]), pd.Index([1, -1])]
)  # fmt: skip
def test_a_vector_of_targets_is_a_column(y):
    assert mf.Dataset(PLAIN, y).y.tolist() == [[1.0], [-1.0]]


def test_default_dtype_and_modes_change_no_number():
    """0.1 in float32 is 0.100000001; torch reads Python's floats in its default dtype."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float16)
        data = mf.Dataset([[0.1]], [0.1])
    finally:
        torch.set_default_dtype(before)
    assert (data.x.item(), data.y.item()) == (0.1, 0.1)
    with torch.inference_mode():
        data = mf.Dataset(PLAIN, [1, 2])
    assert not data.x.is_inference()


@pytest.mark.parametrize("solver", [WassersteinFlow(particles=16), CausalDMFT(samples=64), FiniteWidth(8)])
def test_runs_do_not_depend_on_how_the_array_lies_in_memory(solver):
    x, y = np.random.default_rng(0).normal(size=(5, 3)), [1, -1, 1, 1, -1]
    runs = [solver(mf.Problem(mf.Dataset(given, y), training=mf.Training(steps=3))).f
            for given in (x, np.asfortranarray(x), x[::-1].astype(">f8")[::-1], pd.DataFrame(x))]  # fmt: skip
    assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize(("given", "dtype"), [("f4", torch.float32), ("f8", torch.float64)])
def test_kernels_do_not_depend_on_how_the_array_lies_in_memory(given, dtype):
    x = np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(given)
    dense, conv = mf.Network(2, "relu"), mf.ConvNetwork(depth=1)
    plain = mf.nngp_and_ntk(dense, mf.ntk(), x.reshape(4, 64)), mf.conv_nngp_and_ntk(conv, mf.ntk(), x)
    for other in (np.ascontiguousarray(x[::-1])[::-1], x.astype(">" + given), torch.tensor(x)):
        found = mf.nngp_and_ntk(dense, mf.ntk(), other.reshape(4, 64)), mf.conv_nngp_and_ntk(conv, mf.ntk(), other)
        for one, two in zip(plain, found, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
            assert one[0].dtype == dtype


@pytest.mark.parametrize("kind", [np.array, torch.tensor, np.ma.array, pd.DataFrame, lambda v: list(map(list, v))])
def test_a_dataset_keeps_its_own_copy(kind):
    arrays = [kind([[1.0, 2.0], [3.0, 4.0]]) for _ in range(4)]
    data = mf.Dataset(*arrays)
    for array in arrays:
        if isinstance(array, pd.DataFrame):
            array.iloc[0, 0] = 99.0
        else:
            array[0][0] = 99.0
    for kept in (data.x, data.y, data.x_test, data.y_test):
        assert kept.tolist() == [[1.0, 2.0], [3.0, 4.0]]


MASKED = np.ma.array([[1.0, 2.0], [3.0, 4.0]], mask=[[0, 0], [0, 1]])
NULL = pd.DataFrame({"a": [1.0, 2.0], "b": pd.array([1, None], dtype="Int64")})
PLACE = "at row 1, column 1"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "masked": (lambda: MASKED, f"x holds 1 value.* masked: the first, 4.0, {PLACE}; fill in or remove"),
    "masked row": (lambda: list(MASKED), f"x holds 1 value.* masked: the first, 4.0, {PLACE}"),
    "nullable": (lambda: NULL, rf"missing.*: the first, (nan|<NA>), {PLACE} \('b'\); remove or fill"),
    "nullable objects": (lambda: NULL.astype(object), rf"missing.*: the first, (nan|<NA>), {PLACE} \('b'\)"),
    "nan": (lambda: [[1.0, 2.0], [3.0, float("nan")]], f"the first, nan, {PLACE}; remove or fill"),
    "infinite": (lambda: np.array([[1.0, 2.0], [3.0, -np.inf]]), f"the first, -inf, {PLACE}"),
    "float16 overflow": (lambda: torch.tensor([[1.0, 2.0], [3.0, 1e9]], dtype=torch.float16), f"the first, inf, {PLACE}"),
    "long double beyond": (lambda: np.array([[1, 2], [3, np.longdouble("1e400")]]), f"the first, inf, {PLACE}"),
    "None": (lambda: [[1.0, 2.0], [3.0, None]], f"missing.*: the first, None, {PLACE}"),
    "question mark": (lambda: pd.DataFrame({"a": [1, 2], "b": ["1", "?"]}), rf"missing.*: the first, '\?', {PLACE} \('b'\)"),
    "NA": (lambda: np.array([["1", "2"], ["3", "NA"]]), f"missing.*: the first, 'NA', {PLACE}"),
    "empty text": (lambda: [[1, 2], [3, ""]], f"missing.*: the first, '', {PLACE}"),
    "NaT": (lambda: np.array([[1, 2], [3, pd.NaT]], dtype=object), f"missing.*: the first, NaT, {PLACE}"),
    "text": (lambda: [[1.0, 2.0], [3.0, "four"]], f"text: the first, 'four', {PLACE}; turn it into numbers"),
    "text of numbers": (lambda: np.array([["1", "2"]]), "x holds 2 value.* text: the first, '1', at row 0, column 0"),
    "bytes": (lambda: np.array([[b"1", b"2"]]), "x holds 2 value.* text: the first, b'1', at row 0, column 0"),
    "column of text": (lambda: pd.DataFrame({"a": [1, 2], "b": ["u", "v"]}), r"text: the first, 'u', at row 0, column 1 \('b'\)"),
    "complex": (lambda: [[1, 2], [3, 4j]], f"complex: the first, 4j, {PLACE}; give real and imaginary parts"),
    "complex array": (lambda: np.ones((1, 1), complex), "complex: the first, .*, at row 0, column 0"),
    "complex tensor": (lambda: torch.ones(1, 1, dtype=torch.complex64), "complex: the first, .*, at row 0, column 0"),
    "dates": (lambda: np.array([["2020-01-01"]], dtype="M8[D]"), "dates: the first, 2020-01-01, at row 0, column 0; turn them"),
    "times": (lambda: np.array([[3]], dtype="m8[h]"), "time differences: the first, 3 hours, at row 0, column 0"),
    "date column": (lambda: pd.DataFrame({"a": [1], "t": pd.to_datetime(["2020-01-01"])}), r"dates: .*column 1 \('t'\)"),
    "date objects": (lambda: [[1.0, 2.0], [3.0, date(2020, 1, 1)]], f"of type date: the first, 2020-01-01, {PLACE}"),
    "objects of any kind": (lambda: [[1.0, 2.0], [3.0, {}]], f"of type dict: the first, .*, {PLACE}; give plain numbers"),
    "records": (lambda: np.zeros(2, dtype=[("u", "f8"), ("v", "f8")]), "records.*: the first, .*, at row 0; give plain columns"),
    "2^53 + 1": (lambda: np.array([[1, 2], [3, 2**53 + 1]]), f"cannot hold: the first, 9007199254740993, {PLACE}; keep them"),
    "tensor of 2^53 + 1": (lambda: torch.tensor([[1, 2], [3, 2**53 + 1]]), f"cannot hold: the first, 9007199254740993, {PLACE}"),
    "largest int64": (lambda: np.array([[1, 2], [3, 2**63 - 1]]), f"cannot hold: the first, 9223372036854775807, {PLACE}"),
    "largest uint64": (lambda: np.array([[1, 2], [3, 2**64 - 1]], dtype=np.uint64), f"the first, 18446744073709551615, {PLACE}"),
    "identities beside floats": (lambda: pd.DataFrame({"a": [0.5, 1.5], "id": [1, 2**53 + 1]}), rf"cannot hold: .*{PLACE} \('id'\)"),
    "huge in a list": (lambda: [[0.5, 2], [3, 2**53 + 1]], f"cannot hold: the first, 9007199254740993, {PLACE}"),
    "beyond floats": (lambda: [[0.5, 2], [3, 10**400]], f"cannot hold: the first, 10+, {PLACE}"),
    "ragged": (lambda: [[1, 2], [3, 4], [5]], r"rows of different lengths \(row 2 has 1 entries, row 0 has 2\)"),
    "number among rows": (lambda: [[1, 2], 3], r"rows of different lengths \(row 1 has no entries, row 0 has 2\)"),
    "sparse tensor": (lambda: torch.eye(2).to_sparse(), r"x is no array of numbers: received Tensor, which is sparse: give .*to_dense"),
    "sparse array": (lambda: scipy.sparse.csr_array(np.eye(2)), r"received csr_array, which is sparse: give .*toarray"),
    "on no device": (lambda: torch.ones(2, 2, device="meta"), "x is no array of numbers: received Tensor"),
    "scalar": (lambda: 3.0, r"x must have two dimensions \(samples, features\) or more: received shape \(\)"),
    "vector": (lambda: [1.0, 2.0], r"two dimensions .*: received shape \(2,\); for one feature give x\[:, None\]"),
    "images": (lambda: np.where(np.arange(128).reshape(2, 8, 8) == 83, np.nan, 1), r"the first, nan, at position \[1, 2, 3\]; remove"),
    "no rows": (lambda: np.ones((0, 2)), r"x is empty: received shape \(0, 2\)"),
    "no columns": (lambda: pd.DataFrame(index=[0, 1]), r"x is empty: received shape \(2, 0\)"),
    "empty list": (list, r"two dimensions .*: received shape \(0,\)"),
    "a list of nothing": (lambda: [[]], r"x is empty: received shape \(1, 0\)"),
    "nothing": (lambda: None, "x is no array of numbers: received NoneType; give e.g. a numpy array"),
    "dict": (lambda: {"a": [1]}, "x is no array of numbers: received dict"),
    "set": (lambda: {1, 2}, "x is no array of numbers: received set"),
    "generator": (lambda: (i for i in range(2)), "x is no array of numbers: received generator"),
    "text alone": (lambda: "abc", "x is no array of numbers: received str"),
    "a class": (lambda: np.ndarray, "x is no array of numbers: received type"),
    "index column": (lambda: pd.DataFrame({"Unnamed: 0": [0, 1], "a": [1, 2]}), "x has no name for its column 0 .*drop it, or rename"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_numbers_is_refused_with_its_place(kind):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as found:
        mf.Dataset(make(), [1, 2])
    assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match="x_test "):
        mf.Dataset([[1.0, 2.0]], [1], make() if kind != "nothing" else ())


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.ma.array([1, 2], mask=[0, 1]), "y holds 1 value.* masked: the first, 2, at row 1;"),
        (pd.Series(pd.array([1, None], dtype="Int64")), "y holds 1 value.* missing.*at row 1;"),
        (pd.Series(["a", "b"]), "y holds 2 value.* text: the first, 'a', at row 0;"),
        (np.array([1, 2**60 + 1]), "y holds 1 value.* at row 1;"),
        ([[[1.0]], [[float("nan")]]], "y holds 1 value.* at position \\[1, 0, 0\\];"),
    ],
)
def test_targets_name_their_row(y, message):
    with pytest.raises(ValueError, match=message):
        mf.Dataset(PLAIN, y)


def test_frames_that_are_ordered_differently_are_refused():
    """By position other samples, or other features, would be matched without a word."""
    x, y = pd.DataFrame({"a": [1, 2], "b": [3, 4]}, index=["p", "q"]), pd.Series([1, -1], index=["p", "q"])
    assert mf.Dataset(x, y, x[["a", "b"]]).x_test.tolist() == [[1, 3], [2, 4]]
    with pytest.raises(ValueError, match="x and y name their rows differently: received 'p' and 'q' at position 0"):
        mf.Dataset(x, y[::-1])
    with pytest.raises(
        ValueError, match="x and x_test name their columns differently: received 'a' and 'b' at position 0"
    ):
        mf.Dataset(x, y, x[["b", "a"]])
    with pytest.raises(ValueError, match="x_test and y_test name their rows differently"):
        mf.Dataset(x, y, x, y[::-1])
    assert mf.Dataset(x, y[::-1].to_numpy()).y.tolist() == [[-1], [1]]


def test_the_name_is_text():
    with pytest.raises(ValueError, match="name must be text: received 3"):
        mf.Dataset(PLAIN, [1, 2], name=3)


@pytest.mark.parametrize("power", [0, 1, 52, 53, 54, 63, 64, 200, 1023, 1024, 5000])
def test_whole_numbers_that_float64_holds(power):
    """Those whose odd part has at most 53 bits and whose size is below 2^1024"""
    for number in (2**power, 2**power + 1, 3 * 2**power, -(2**power)):
        odd = abs(number) // (abs(number) & -abs(number))
        assert array_input.exact(number) == (odd.bit_length() <= 53 and abs(number).bit_length() <= 1024)
