"""Where in the code of a network something stands, for messages."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def where() -> str:
    """The place in the user's own code that is being run"""
    frame: Any = sys._getframe(1)
    torch_home = os.path.dirname(os.path.abspath(torch.__file__))
    while frame is not None:
        path = os.path.abspath(frame.f_code.co_filename)
        if not path.startswith((torch_home, _PACKAGE)) and os.path.exists(path):
            return f"{os.path.basename(path)}, line {frame.f_lineno}"
        frame = frame.f_back
    return "in torch"
