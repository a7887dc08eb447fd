"""Processes that work for another one."""

from __future__ import annotations

import multiprocessing
import os
import threading
from functools import cache
from multiprocessing import connection


@cache
def end_with_parent() -> None:
    """A process that another one of Python's started ends when that one does, even by a kill: its work would reach nobody."""
    parent = multiprocessing.parent_process()

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
