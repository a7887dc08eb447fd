"""docs/equations.md: numbers rise through the page, each is cited somewhere, and none is cited that it lacks."""

import re

import pytest

from tests.running import ROOT

PAGE = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
NUMBERS = re.findall(r"^\*\*\((\d+[a-z]?)\)\*\*", PAGE, re.MULTILINE)
CITED = re.compile(r"equations?\s+(\d+[a-z]?(?:(?:,\s+|\s+and\s+|\s+to\s+)\d+[a-z]?)*)\b", re.IGNORECASE)
FOLDERS = [ROOT / folder for folder in ("meanfield", "solvers", "docs", "examples", "tests")]
FILES = [path for folder in FOLDERS for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".md")]
FILES.append(ROOT / "README.md")


def order(number):
    digits = re.match(r"\d+", number)[0]
    return int(digits), number[len(digits) :]


def cited(text):
    """The numbers that a text cites: "equations 20 to 22, 31" are 20, 22 and 31, and what lies between"""
    found = set()
    for numbers in CITED.findall(text):
        for first, last in re.findall(r"(\d+[a-z]?)(?:\s+to\s+(\d+[a-z]?))?", numbers):
            found |= {first, last or first}
            found |= {n for n in NUMBERS if order(first) <= order(n) <= order(last or first)}
    return found


def test_numbers_rise():
    assert len(NUMBERS) > 60
    assert sorted(set(NUMBERS), key=order) == NUMBERS


def test_every_number_that_is_cited_exists():
    missing = {f"{path.relative_to(ROOT)}: {n}" for path in FILES for n in cited(path.read_text("utf-8")) - {*NUMBERS}}
    missing |= {f"equations.md: {n}" for n in re.findall(r"(?<![\w*])\((\d\d[a-z]?)\)(?!\*)", PAGE) if n not in NUMBERS}
    assert missing == set()


def test_every_equation_is_cited_by_code_or_tests():
    code = [path.read_text("utf-8") for path in FILES if path.suffix == ".py"]
    assert set(NUMBERS) - set.union(*map(cited, code)) == set()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("(equations 20 to 22,\n31)", {"20", "21", "22", "31"}),
        ("Equation 28b.", {"28b"}),
        ("equations 3 and 42b", {"3", "42b"}),
    ],
)
def test_citations_are_read_as_they_are_written(text, numbers):
    assert cited(text) == numbers
