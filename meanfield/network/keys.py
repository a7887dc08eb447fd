"""Keys of what is recorded layer by layer: a kind and a layer, printed as Phi1, or as Phi[blocks.0.mix] for a layer with a name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

_PRINTED = re.compile(r"([A-Za-z]+)(?:(\d+)|\[(.+)\])")


class Key(str):
    """A kernel "Phi" or "G", a response "A" or "B" or a field "h" or "g" of a layer: a text, which equals its printed form"""

    kind: str
    layer: int | str

    def __new__(cls, kind: str, layer: int | str) -> Key:
        key = super().__new__(cls, f"{kind}{layer}" if isinstance(layer, int) else f"{kind}[{layer}]")
        key.kind, key.layer = kind, layer
        return key

    def __reduce__(self):
        return Key, (self.kind, self.layer)

    @staticmethod
    def of(name: str) -> Key:
        """The key that is printed as `name`; ValueError if there is none"""
        kind, layer = parts(name)
        if layer is None:
            raise ValueError(f"{name!r} names no layer: give a kind and a layer, e.g. 'Phi1'")
        return Key(kind, layer)


def parts(name: str) -> tuple[str, int | str | None]:
    """(kind, layer) of a key, (name, None) of any other text"""
    found = _PRINTED.fullmatch(name)
    return (found[1], found[3] or int(found[2])) if found else (name, None)


class NotRecorded(KeyError, ValueError):
    """A key under which nothing was recorded."""

    __str__ = Exception.__str__  # KeyError's would quote the message


class ByKey(dict[str, T]):
    """What was recorded, by key; NotRecorded, with all that was, for another."""

    def __init__(self, what: str, entries: Mapping[str, T], remedy: str) -> None:
        super().__init__({Key.of(name): value for name, value in entries.items()})
        self.what, self.remedy = what, remedy

    def __missing__(self, name: str) -> T:
        raise NotRecorded(f"no {self.what} {name!r}: recorded are {', '.join(self) or 'none'}; {self.remedy}")
