"""Files of the user's: their numbers, or one line that says what is wrong where."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import meanfield as mf


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
        (
            _archive(x=np.array([[_Bomb()]], dtype=object), y=np.ones(1)),
            "bad.npz: no intact .npz archive of plain arrays",
        ),
        (pickle.dumps(_Bomb()), "bad.npz: no intact .npz archive of plain arrays"),
        (_GOOD[: len(_GOOD) // 2], "bad.npz: no intact .npz archive"),
        (_GOOD[:60] + bytes(40) + _GOOD[100:], "bad.npz: no intact .npz archive"),  # zlib stumbles
        (_GOOD[:3000] + bytes(40) + _GOOD[3040:], "bad.npz: no intact .npz archive"),  # the checksum is wrong
        (b"", "bad.npz: no intact .npz archive"),
        (_npy(np.ones((3, 2))), "bad.npz: no intact .npz archive"),  # a .npy file under another name
        (_archive(x=np.ones((3, 2))), "bad.npz: holds the arrays \\['x'\\]: needed are x and y"),
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
    with pytest.raises(ValueError, match=r"mine\.npz: x_test is there already: leave out n_test=1"):
        mf.from_file(path, n_test=1)


def _file(tmp_path, content: str | bytes, name="bad.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


READ = {  # all of them hold a = 1, -4e-3 and b = 2.5, 0 and y = 3, 7
    "plain": "a,b,y\n1,2.5,3\n-4e-3,0,7\n",
    "no newline at the end": "a,b,y\n1,2.5,3\n-4e-3,0,7",
    "BOM": b"\xef\xbb\xbfa,b,y\n1,2.5,3\n-4e-3,0,7\n",
    "CRLF": "a,b,y\r\n1,2.5,3\r\n-4e-3,0,7\r\n",
    "CR": "a,b,y\r1,2.5,3\r-4e-3,0,7\r",
    "blank lines": "\n  \na,b,y\n\n1,2.5,3\n \n-4e-3,0,7\n\n\n",
    "spaces": " a , b,y \n 1, 2.5 ,3\n-4e-3,  0,7\n",
    "quotes": '"a","b","y"\n"1","2.5","3"\n-4e-3, "0",7\n',
    "semicolons": "a;b;y\n1;2.5;3\n-4e-3;0;7\n",
    "tabs": "a\tb\ty\n1\t2.5\t3\n-4e-3\t0\t7\n",
    "leading plus": "a,b,y\n+1,+2.5,03\n-.004,0.,7e0\n",
}


@pytest.mark.parametrize("kind", READ)
def test_csv_files_of_many_kinds_hold_the_same_numbers(tmp_path, kind):
    data = mf.from_file(_file(tmp_path, READ[kind]))
    assert (data.x.tolist(), data.y.tolist()) == ([[1, 2.5], [-4e-3, 0]], [[3], [7]])
    assert mf.from_file(_file(tmp_path, READ[kind]), targets="a").y.tolist() == [[1], [-4e-3]]


@pytest.mark.parametrize(("header", "row", "name"), [
    ('"a;b",y', "1,2", "a;b"), ('"a,b";y', "1;2", "a,b"), ('"a,b"\ty', "1\t2", "a,b"), ('"a\n b",y', "1,2", "a\n b"),
])  # fmt: skip
def test_separators_within_names_do_not_separate(tmp_path, header, row, name):
    data = mf.from_file(_file(tmp_path, f"{header}\n{row}\n"), targets=[name])
    assert (data.x.tolist(), data.y.tolist()) == ([[2]], [[1]])


def test_what_pandas_writes_is_read_or_refused(tmp_path):
    eighths = (
        np.random.default_rng(0).integers(-20, 20, (5, 3)) / 8
    )  # pandas 2 reads longer numbers to the last bit but one
    frame = pd.DataFrame(eighths, columns=["a", "b", "y"])
    frame.to_csv(tmp_path / "with.csv")
    frame.to_csv(tmp_path / "without.csv", index=False)
    pd.read_csv(tmp_path / "with.csv").to_csv(tmp_path / "again.csv", index=False)
    frame.iloc[[3, 1, 4]].to_csv(tmp_path / "some.csv")
    assert mf.from_file(tmp_path / "without.csv") == mf.Dataset(frame[["a", "b"]], frame["y"], name="without")
    for name, received in (("with", "''"), ("again", "'Unnamed: 0'")):
        with pytest.warns(
            UserWarning, match=rf"first column has no name \(received {received}\).*left out as an index"
        ):
            found = mf.from_file(tmp_path / f"{name}.csv")
        assert found == mf.Dataset(frame[["a", "b"]], frame["y"], name=name)
    with pytest.raises(
        ValueError, match=r"some.csv: column 1 has no name \(received ''\).*not count the rows.*index=False"
    ):
        mf.from_file(tmp_path / "some.csv")


def test_numbers_are_those_of_python_s_float(tmp_path):
    """Any number of digits: the nearest float64; repr and 17 digits come back exactly."""
    x = np.random.default_rng(0).normal(size=(20, 2)) * 10.0 ** np.arange(-200, 200, 10).reshape(20, 2)
    for cell in ("{!r}", "{:.17g}", "{:.30e}"):
        text = "a,y\n" + "".join(f"{cell.format(float(a))},{cell.format(float(b))}\n" for a, b in x)
        data = mf.from_file(_file(tmp_path, text))
        assert data.x[:, 0].tolist() == x[:, 0].tolist()
        assert data.y[:, 0].tolist() == x[:, 1].tolist()


LINES = "a,b,y\n1,2,3\n"
BAD = {
    "empty": ("", "no data: needed are a header line and at least one line"),
    "blank": ("\n \n\n", "no data: needed are a header line"),
    "one line": ("a,b,y", "no data: needed are a header line"),
    "header only": ("a,b,y\n", "no data: needed are a header line"),
    "word": (LINES + "4,five,6\n", "line 3, column 'b': received 'five'; a number is needed"),
    "as an editor counts": ("\n\na,b,y\n\n1,2,3\n4,five,6\n", "line 6, column 'b': received 'five'"),
    "empty cell": (LINES + "4,,6\n", "line 3, column 'b': received ''; a value is missing"),
    "empty cells": (LINES + ",,\n", "line 3, column 'a': received ''; a value is missing"),
    "NA": (LINES + "4, NA,6\n", "line 3, column 'b': received 'NA'; a value is missing"),
    "question mark": (LINES + "?,5,6\n", r"line 3, column 'a': received '\?'; a value is missing"),
    "nan": (LINES + "4,nan,6\n", "line 3, column 'b': received 'nan'; a value is missing"),
    "infinite": (LINES + "4,-inf,6\n", "line 3, column 'b': received '-inf'; numbers must be finite"),
    "too large": (LINES + "4,1e999,6\n", "line 3, column 'b': received '1e999'; numbers must be finite"),
    "underscore": (LINES + "4,1_000,6\n", "line 3, column 'b': received '1_000'; a number is needed"),
    "hexadecimal": (LINES + "4,0x1F,6\n", "line 3, column 'b': received '0x1F'; a number is needed"),
    "boolean": (LINES + "4,True,6\n", "line 3, column 'b': received 'True'; a number is needed"),
    "date": (LINES + "4,2020-01-01,6\n", "line 3, column 'b': received '2020-01-01'; a number is needed"),
    "complex": (LINES + "4,1+2j,6\n", r"line 3, column 'b': received '1\+2j'; a number is needed"),
    "thousands": (LINES + '4,"1,234",6\n', "line 3, column 'b': received '1,234'; write numbers as 1234.5, without thousands"),
    "unquoted thousands": (LINES + "4,1,234,6\n", "line 3 holds 4 cell.*, the header 3: .*write numbers as 1234.5, without other"),
    "decimal comma": ("a;b;y\n1;2,5;3\n", "line 2, column 'b': received '2,5'; write numbers as 1234.5"),
    "2^53 + 1": (LINES + "4,-9007199254740993,6\n", "line 3, column 'b': received '-9007199254740993'; float64 cannot hold"),
    "too few": (LINES + "4,5\n", "line 3 holds 2 cell.*, the header 3: received '4', '5'"),
    "too many": (LINES + "4,5,6,7\n", "line 3 holds 4 cell.*, the header 3: received '4', '5', '6', '7'"),
    "other separator": (LINES + "4;5;6\n", "line 3 holds 1 cell.*, the header 3: received '4;5;6'"),
    "comma at the end": ("a,b,y,\n1,2,3,\n", r"column 4 has no name \(received ''\)"),
    "no name": ("a,,y\n1,2,3\n", r"column 2 has no name \(received ''\)"),
    "twice": ("a,y, y\n1,2,3\n", "the header names the column 'y' twice"),
    "no header": ("1,2,3\n4,5,6\n", "no header line: the first line must name the columns, with words; received '1', '2', '3'"),
    "no header, but missing values": ("NA,2.5,\n4,5,6\n", "no header line: .* received 'NA', '2.5', ''"),
    "semicolons without header": ("1;2;3\n4;5;6\n", "no header line: .* received '1', '2', '3'"),
    "comment": ("# made by hand\na,b,y\n1,2,3\n", "line 1 is a comment, '# made by hand': remove comments"),
    "numpy's header": ("# a,b,y\n1,2,3\n", "line 1 is a comment, '# a', 'b', 'y': remove comments; the first line must name"),
    "comment below": (LINES + "# 4,5,6\n", "line 3 is a comment"),
    "spaces as separators": ("a b y\n1 2 3\n", "one column only, 'a b y': .*separated by commas, semicolons or tabs"),
    "one column": ("y\n1\n", "one column only, 'y'"),
    "open quote": (LINES + '4,"5,6\n', "line 2 cannot be cut into cells .*check its quotes"),
    "text behind a quote": (LINES + '4,"5"5,6\n', "line 2 cannot be cut into cells .*check its quotes"),
    "Latin letters": ("größe,y\n1,2\n".encode("latin-1"), "no text in UTF-8 .*: save it"),
    "UTF-16": ("a,y\n1,2\n".encode("utf-16"), "no text in UTF-8"),
    "bytes": (bytes(range(256)), "no text in UTF-8"),
    "zero bytes": (b"a,y\n1,2\0\n", r"line 2, column 'y': received '2\\x00'; a number is needed"),
    "a giant cell": (b"a,y\n" + b"1" * 200_000 + b",1\n", "line 1 cannot be cut into cells"),
    "a giant header": (b"a" * 200_000, "cannot be cut into cells"),
    "many columns": (",".join(f"c{i}" for i in range(500)) + "\n1\n", "line 2 holds 1 cell.*, the header 500"),
    "an archive": (b"PK\x03\x04\xff", "no text in UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_broken_csv_is_refused_with_its_place(tmp_path, kind):
    content, message = BAD[kind]
    with pytest.raises(ValueError, match=f"^bad.csv: .*{message}") as found:
        mf.from_file(_file(tmp_path, content))
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 300


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (3, "targets=3 does not fit its 3 columns: one input column must stay"),
        (0, "targets must be at least 1: received 0"),
        (-1, "targets must be at least 1: received -1"),
        *(
            (wrong, f"targets must be a whole number or a text or a sequence of texts: received {wrong}")
            for wrong in (1.5, True, None)
        ),
        ("z", "no column is called 'z': known are 'a', 'b', 'y'"),
        (["y", 0], r"targets\[1\] must be a text: received 0"),
        ([], "targets is empty: name at least one of the columns 'a', 'b', 'y'"),
        (["y", "y"], "targets names a column twice: received 'y', 'y'; each is taken once"),
        (["a", "b", "y"], "targets='a', 'b', 'y' takes all columns: one input column must stay"),
    ],
)
def test_targets_that_do_not_fit_are_refused(tmp_path, targets, message):
    with pytest.raises(ValueError, match=message):
        mf.from_file(_file(tmp_path, LINES), targets)


def test_targets_are_counted_by_any_whole_number(tmp_path):
    for two in (2, 2.0, np.int64(2)):
        assert mf.from_file(_file(tmp_path, LINES), two).y.tolist() == [[2, 3]]
    assert mf.from_file(_file(tmp_path, LINES), np.array(["y", "a"])).y.tolist() == [[3, 1]]
    with pytest.raises(ValueError, match=r"targets='y' belongs to files of columns: in an .npz file"):
        mf.from_file(_npz(tmp_path / "mine.npz", x=np.ones((3, 2)), y=np.ones(3)), "y")


@pytest.mark.parametrize(
    ("n_test", "message"),
    [
        (1, "n_test=1 leaves no training sample of the 1 rows in bad"),
        (float("nan"), "n_test must be a whole number: received nan"),
        (0.5, "n_test must be a whole number: received 0.5"),
        (-1, "n_test must be at least 0: received -1"),
        ("half", "n_test must be a number: received 'half'"),
    ],
)
def test_numbers_of_test_samples_that_do_not_fit_are_refused(tmp_path, n_test, message):
    with pytest.raises(ValueError, match=message):
        mf.from_file(_file(tmp_path, LINES), n_test=n_test)
    assert mf.from_file(_file(tmp_path, LINES), n_test=0).x_test is None


def _zipped(member: bytes) -> bytes:
    """An archive whose checksums are right, with `member` for x.npy"""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", member)
        archive.writestr("y.npy", _npy(np.ones(3)))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["no array", "open brackets", "no dtype", "encrypted", "unknown compression"])
def test_damage_that_checksums_do_not_show_is_refused(tmp_path, kind):
    good = _npy(np.ones((3, 2)))
    content = {
        "no array": _zipped(b"x"),
        "open brackets": _zipped(good.replace(b"(3, 2)", b"(3, 2(")),
        "no dtype": _zipped(good.replace(b"<f8", b"<q9")),
        "encrypted": _zipped(good).replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
        "unknown compression": _zipped(good).replace(b"\x14\x00\x00\x00\x00\x00", b"\x14\x00\x00\x00\x63\x00"),
    }[kind]
    assert content != _zipped(good)
    with pytest.raises(ValueError, match=r"bad\.npz: ") as found:
        mf.from_file(_file(tmp_path, content, "bad.npz"))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones(3)}, "x must have two dimensions"),
        (
            {"x": np.ones((3, 2, 2)), "x_test": np.ones((1, 2))},
            r"samples of the same shape: received \(2, 2\) and \(2,\)",
        ),
        ({"x": np.ones((3, 2), complex)}, "x holds 6 value.* complex"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "x is empty"),
        ({"x": np.array([["1", "?"]] * 3)}, r"x holds 3 value.* missing.*'\?', at row 0, column 1"),
        (
            {"x": np.ones((3, 2)), "x_test": np.ones((1, 3))},
            "x and x_test must have the same number of columns: received 2 and 3",
        ),
    ],
)
def test_arrays_of_npz_files_are_refused_with_the_file(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=f"mine.npz: .*{message}"):
        mf.from_file(_npz(tmp_path / "mine.npz", **{"y": np.ones(3)} | arrays))


@pytest.mark.parametrize("name", ["mine.pkl", "mine.pt", "mine", "mine.npy"])
def test_other_endings_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match=f"cannot read {name}: the ending is .*; known: .npz, .csv, .tsv, .parquet"):
        mf.from_file(tmp_path / name)
    assert _unpickled == []


def test_what_is_no_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "folder.csv").mkdir()
    for path, message in (
        (tmp_path / "absent.npz", "no such file: .*absent.npz"),
        (tmp_path / "folder.csv", r"folder.csv is a folder: give the file itself, .npz, .csv, .tsv, .parquet"),
        ("", "is a folder"),
        (None, "path must be a text or a path: received None"),
        (3, "path must be a text or a path: received 3"),
    ):
        with pytest.raises(ValueError, match=message):
            mf.from_file(path)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    path = _file(tmp_path, LINES)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"cannot read .*bad\.csv: Permission denied"):
        mf.from_file(path)
