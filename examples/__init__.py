"""Runnable studies. Each module's `main(out=None, quick=False)` prints a table, keeps pictures in the folder `out` if there is
one, and returns its main numbers. `python -m examples --quick --out DIR` runs all, `python -m examples.NAME` one.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np


def names() -> tuple[str, ...]:
    """The modules of this package, the demo first."""
    found = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return tuple(sorted(found, key=lambda name: (name != "demo", name)))


def folder(out: str | Path) -> Path:
    """`out`, made if need be."""
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    return path


def keep(axes: Any, path: Path) -> None:
    """Write the figure that holds `axes` and close it."""
    figure = np.atleast_1d(axes).flat[0].figure
    figure.savefig(path, dpi=130)
    plt.close(figure)


def slope(x: Any, y: Any) -> float:
    """The power p of y ~ x^p by least squares."""
    return float(np.polyfit(np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float)), 1)[0])
