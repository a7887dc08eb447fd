"""Formulas of docs/equations.md, which are plain text that any editor shows, as TeX for the site; signs with a meaning of their own in
prose (indices and powers) as HTML.
"""

from __future__ import annotations

import re
import unicodedata

FUNCTIONS = {
    "exp",
    "log",
    "arctan",
    "artanh",
    "max",
    "min",
    "tr",
    "det",
    "Cov",
    "Var",
    "cos",
    "sin",
    "sqrt",
    "KL",
    "prox",
    "tanh",
}
SHORT = {"of", "in", "as", "if", "at", "is", "or", "so", "on", "by", "to"}
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ᵀ", [*"0123456789-+", r"\mathsf{T}"], strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
ACCENTS = {"\u0303": r"\tilde", "\u0304": r"\bar", "\u0302": r"\hat"}
SIGNS = {
    "½": r"\tfrac{1}{2}",
    "¼": r"\tfrac{1}{4}",
    "𝓛": r"\mathcal{L}",
    "ℒ": r"\mathcal{L}",
    "𝓕": r"\mathcal{F}",
    "ℓ": r"\ell ",
    "~": r"\sim ",
}
CLOSING = {"{": "}", "(": ")", "[": "]", "⌊": "⌋"}
WIDE = 70  # characters of a row that fits a page
MOST = 8  # rows of a formula; more are a table
BLOCK = re.compile(r"(?:(?<=\n\n)|^)((?: {4}.*\n)+)(?=\n|$)")
FORM = re.compile(r"(\w_\w)ᵀ? Σ \1")  # Σ a covariance, between a factor and its transpose
INDEX = re.compile(
    r"((?<![A-Za-z_])[A-Za-z]['̃̄̂]*|[^\W\d_a-zA-Z]['̃̄̂]*|[)⟩\]|]|\b\d+(?=\^)|\bmax(?=_\w\b)|</su[bp]>)"
    r"([_^])(\{[^}]*\}|\([^)]*\)|[−-]1/2|[−-]?\d+(?:\.\d+)?|[−-]?(?:[^\W_ᵀ⁰¹²³⁴⁵⁶⁷⁸⁹]+|∞)\*?'*|\*+)"
)


def page(text: str) -> str:
    """The page: its formulas, and the prose between them (not code, not links)"""
    pieces = BLOCK.split(text)
    pieces[1::2] = [formula(block) for block in pieces[1::2]]
    pieces[::2] = [prose(piece) for piece in pieces[::2]]
    return "".join(pieces)


def prose(text: str) -> str:
    """Indices and powers as such"""
    pieces = re.split(r"(```[\s\S]*?```|^ {4}.*$|`[^`]*`|\]\([^)]*\))", text, flags=re.MULTILINE)
    for i in range(0, len(pieces), 2):
        before = ""
        while before != pieces[i]:
            before, pieces[i] = pieces[i], INDEX.sub(_index, pieces[i])
        pieces[i] = re.sub(r"(?<=\w)\*(?=[⁰¹²³])", r"\\*", pieces[i])  # no emphasis
    return "".join(pieces)


def _index(match: re.Match[str]) -> str:
    base, sign, index = match.groups()
    tag = "sub" if sign == "_" else "sup"
    inner = index[1:-1] if index[0] == "{" or (index[0] == "(" and sign == "^") else index
    return f"{base}<{tag}>{inner}</{tag}>"


def formula(block: str) -> str:
    """A display; what has many rows is a table of rules, and stays as it is written"""
    rows = [row for line in block.splitlines() for row in _rows(line.strip())]
    if len(rows) > MOST:
        return block
    body = " \\\\\n".join(_aligned(row) for row in rows)
    return f"$$\n\\begin{{aligned}}\n{body}\n\\end{{aligned}}\n$$\n"


def _rows(line: str) -> list[str]:
    """A line whose formulas stand far apart, in as many rows as it needs"""
    rows: list[str] = []
    line = re.sub(r"^(\S+)\s+(=|←)", r"\1 \2", line)  # was put below others
    for part in _apart(line):
        if rows and len(rows[-1]) + len(part) < WIDE:
            rows[-1] += "    " + part
        else:
            rows.append(part)
    return rows


def _apart(line: str) -> list[str]:
    """The formulas of a line: far apart, or after a comma, in no bracket"""
    parts, start = [], 0
    for gap in re.finditer(r"(?<=[,;])\s{2,}|\s{4,}", line):
        before = line[start : gap.start()]
        if sum(before.count(c) for c in "([{") == sum(before.count(c) for c in ")]}"):
            parts.append(before)
            start = gap.end()
    return [*parts, line[start:]]


def _aligned(row: str) -> str:
    parts = [tex(part) for part in re.split(r"\s{4,}", row)]
    first = (
        re.sub(r"(?<=.)\s*(=|←|→|≤|<|∝)", r" &\1", parts[0], count=1)
        if "\\text" not in parts[0][:6]
        else "&" + parts[0]
    )
    return r" \qquad ".join([first if "&" in first else "&" + first, *parts[1:]])


def tex(text: str) -> str:
    """A formula in plain text as TeX, e.g. h^{l+1} = ω W^l φ(h^l) / √N"""
    text = unicodedata.normalize("NFD", text).replace("=\u0338", "≠")
    made, i = [], 0
    while i < len(text):
        piece, i = _next(text, i)
        made.append(piece)
    return re.sub(r"\s+", " ", "".join(made)).strip()


def _next(text: str, i: int) -> tuple[str, int]:
    """What begins at i, as TeX, and where it ends"""
    c = text[i]
    if word := re.match(r"[A-Za-z]{2,}", text[i:]):
        if word[0] in FUNCTIONS:
            return rf"\operatorname{{{word[0]}}}", i + len(word[0])
        if end := _words(text, i):
            return _spaced(text, i, end), end
    if c in "_^":
        return _script(text, i)
    if c == "√":
        inner, end = _argument(text, i + 1)
        return rf"\sqrt{{{tex(inner)}}}", end
    for table, sign in ((RAISED, "^"), (LOWERED, "_")):
        if c in table:
            end = i
            while end < len(text) and text[end] in table:
                end += 1
            return f"{sign}{{{''.join(table[d] for d in text[i:end])}}}", end
    if i + 1 < len(text) and text[i + 1] in ACCENTS:
        return f"{ACCENTS[text[i + 1]]}{{{c}}}", i + 2
    if text.startswith("..", i):
        return r"\ldots ", i + 2
    if c == "Σ" and re.match(r"_[^X*]|\s", text[i + 1 :]) and not FORM.search(text, max(0, i - 5), i + 6):
        return r"\sum ", i + 1
    if c == "*":
        end = i + 1
        while end < len(text) and text[end] in RAISED:
            end += 1
        return f"^{{*{''.join(RAISED[d] for d in text[i + 1 : end])}}}", end
    return SIGNS.get(c, c), i + 1


def _words(text: str, i: int) -> int:
    """Where the prose that begins at i ends; 0 if there is none"""
    end = 0
    for word in re.finditer(r"([A-Za-z]{2,}\d*)\s?", text[i:]):
        start = i + word.start()
        if (end and start != end) or (not end and start != i) or word[1] in FUNCTIONS:
            break
        if len(word[1]) < 3 and word[1] not in SHORT:
            break
        end = i + word.end()
    return i + len(text[i:end].rstrip()) if end else 0


def _spaced(text: str, i: int, end: int) -> str:
    before, after = ("~" if text[k : k + 1] == " " and k >= 0 else "" for k in (i - 1, end))
    return rf"{before}\text{{{text[i:end]}}}{after}"


def _script(text: str, i: int) -> tuple[str, int]:
    inner, end = _argument(text, i + 1)
    return f"{text[i]}{{{tex(inner).replace('^{*}', '*')}}}", end


def _argument(text: str, i: int) -> tuple[str, int]:
    """What an index, a power or a root takes: a group in brackets, or the letters and digits that follow"""
    if text[i : i + 1] and text[i] in CLOSING:
        depth, end = 0, i
        while end < len(text):
            depth += (text[end] in CLOSING) - (text[end] in CLOSING.values())
            end += 1
            if depth == 0:
                break
        inner = text[i:end]
        return (inner if text[i] == "⌊" else inner[1:-1]), end
    taken = re.match(
        r"[−-]?√?(?:\d+(?:\.\d+)?|[^\W\d_ᵀ⁰¹²³⁴⁵⁶⁷⁸⁹]+|[½∞])?\*{0,2}[A-Z]?\*?(?:,[a-z](?![\w]))?", text[i:]
    )
    end = i + (len(taken[0]) if taken and taken[0] else 1)
    if text[i - 1] == "√":  # of one letter, with its index
        end = i + 1
    return text[i:end], end
