"""Pictures as text that a page holds: lines as SVG, and as pixels where that is shorter."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

MOST = 150_000  # bytes of an SVG; longer ones are kept as pixels


@dataclass(frozen=True)
class Frame:
    """One picture"""

    source: str
    """As the `src` of an image: data: .."""
    when: str = ""
    """What distinguishes it from the others of its figure, e.g. a time"""
    width: float = 0.0
    """Inches"""


@dataclass(frozen=True)
class Figure:
    """One picture, or several that a slider chooses from"""

    caption: str
    frames: tuple[Frame, ...]

    @property
    def wide(self) -> bool:
        """Whether it is too wide to stand beside another"""
        return self.frames[0].width > 7


def frame(draw: Callable[[], Any], when: str = "") -> Frame:
    """The picture that `draw` makes"""
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "page"}):
        figure: Any = np.atleast_1d(np.asarray(draw(), dtype=object)).ravel()[0].get_figure(root=True)
        try:
            figure.draw_without_rendering()
            image = _written(figure, format="svg", metadata={"Date": None})
            kind = "image/svg+xml"
            if len(image) > MOST:
                image, kind = _written(figure, format="png", dpi=130), "image/png"
        finally:
            plt.close(figure)
    return Frame(f"data:{kind};base64,{base64.b64encode(image).decode()}", when, float(figure.get_figwidth()))


def _written(figure: Any, **options: Any) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, **options)
    return image.getvalue()
