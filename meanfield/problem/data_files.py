"""Data sets from files of the user's: .npz, .csv, .tsv and .parquet."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meanfield.checking.arguments import checked
from meanfield.problem.csv_files import read_csv
from meanfield.problem.dataset import Dataset
from meanfield.problem.own_data import from_arrays, from_frame
from meanfield.problem.transformation import TargetWay, Way


@checked
def from_file(
    path: str | Path,
    targets: int | str | Sequence[str] = 1,
    n_test: int = 0,
    n_train: int | None = None,
    shuffle: int | None = None,
    stratify: bool = False,
    scale: Way | Sequence[Way] | None = None,
    one_hot: bool | None = None,
    scale_targets: TargetWay | None = None,
) -> Dataset:
    """A dataset from .npz (arrays x, y, optionally x_test, y_test, of any shape), .csv, .tsv (a header that names the columns) or .parquet.

    Columns of a .csv are separated by commas, or by semicolons or tabs if the header has no comma; a first column without a name that
    counts the rows is an index and left out, with a warning. Targets in words are classes with names. Nothing is unpickled.
    ValueError for other kinds and broken files, with line and column where a number is missing or none.

    Args:
        path: A .npz file (arrays x, y), or a .csv, .tsv or .parquet file of columns with names
        targets: Target columns of a file of columns: their names, or how many at the right
        n_test: The last rows become as many test samples, after shuffling
        n_train: How many of the other rows to train on; all if left out
        shuffle: Seed of a shuffle of the rows, which stay in their order if it is left out
        stratify: Whether each class gets its share of test and training samples
        scale: Of inputs, from training samples alone: centre or standardise columns, and then unit_norm, rows of norm sqrt(D)
        one_hot: True: targets are classes, as one-hot rows; False: two classes, as -1 and +1; left out, words are classes and numbers not
        scale_targets: Of targets that are numbers, from training samples alone: centre or standardise columns

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import meanfield as mf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "flowers.csv"
        ...     _ = path.write_text("length,width,kind\\n1.0,0.5,rose\\n2.0,0.1,tulip\\n3.0,0.2,rose\\n")
        ...     data = mf.from_file(path, targets="kind")
        >>> data.x.shape, data.classes
        (torch.Size([3, 2]), ('rose', 'tulip'))
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file itself, {_known()}")
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    kind = path.suffix.lower()
    if kind not in READERS:
        raise ValueError(f"cannot read {path.name}: the ending is {path.suffix!r}; known: {_known()}")
    try:
        asked = (n_test, n_train, shuffle, stratify, scale, one_hot, path.stem, scale_targets)
        if kind == ".parquet":
            return from_frame(_read_parquet(path), targets, *asked)
        arrays = {"x_test": None, "y_test": None} | READERS[kind](path, targets)
        return from_arrays(arrays["x"], arrays["y"], arrays["x_test"], arrays["y_test"], *asked)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _known() -> str:
    return ", ".join(READERS)


def _read_npz(path: Path, targets: Any) -> dict[str, Any]:
    if targets != 1:
        raise ValueError(
            f"targets={targets!r} belongs to files of columns: in an .npz file the targets are the array y"
        )
    try:
        with path.open("rb") as file, zipfile.ZipFile(file), np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, MemoryError):
        raise
    except Exception as error:  # numpy and zipfile stumble over damaged files in a dozen ways
        raise ValueError(f"no intact .npz archive of plain arrays ({error}): write one with numpy.savez") from error
    known = {"x", "y", "x_test", "y_test"}
    if not {"x", "y"} <= set(arrays) <= known:
        raise ValueError(f"holds the arrays {sorted(arrays)}: needed are x and y, and optionally x_test, y_test")
    return arrays


def _read_parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(
            "parquet files are read by pyarrow, which is not installed: pip install pyarrow, or give mf.from_frame a frame that you read"
        ) from error
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise ValueError(f"no intact parquet file ({str(error).splitlines()[0]})") from error
    index = (table.schema.pandas_metadata or {}).get("index_columns", [])
    return table.drop_columns([name for name in index if name in table.column_names])


READERS: dict[str, Callable[..., Any]] = {
    ".npz": _read_npz,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": _read_parquet,
}
