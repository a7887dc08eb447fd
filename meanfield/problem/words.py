"""Words with numbers of their own, "adam(beta1=0.8)": how a shell says what is an object in Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping

_WORD = re.compile(r"\s*(\w+)\s*\((.*)\)\s*")


def worded(what: str, text: str, takes: Mapping[str, Collection[str]]) -> tuple[str, dict[str, float]] | None:
    """(name, {number: value}) of "name(number=value, ..)"; None for a text of another form, or a name that is not known.

    takes: the numbers of each name. ValueError for what these are not.
    """
    match = _WORD.fullmatch(text)
    if match is None or match[1] not in takes:
        return None
    name, known, found = match[1], takes[match[1]], {}
    for part in filter(None, map(str.strip, match[2].split(","))):
        key, _, value = (side.strip() for side in part.partition("="))
        if key not in known or key in found:
            right = f"{name} takes {', '.join(known)}, each once" if known else f"{name} takes no numbers"
            raise ValueError(f"{what}: {right}: received {part!r} in {text!r}")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = None
        if not isinstance(found[key], int | float):
            raise ValueError(f"{what}: {key} of {name} must be a number, as {key}=0.5: received {part!r} in {text!r}")
    return name, found
