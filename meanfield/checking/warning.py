"""warn: a warning at the line of the user's that led to it, however many calls lie between."""

from __future__ import annotations

import sys
import warnings

_BETWEEN = {"meanfield", "solvers", "contextlib", "functools", "torch"}  # packages whose frames are not the user's


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Points at the nearest line outside of both packages and of what wraps their calls."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
