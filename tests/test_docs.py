"""The pages name files, functions and pages that exist, and docs/architecture.md names every file."""

import ast
import re
from collections import Counter

import pytest

from examples import names
from tests.running import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
FILES = [path for top in ("meanfield", "solvers", "tests", "docs", "examples") for path in (ROOT / top).rglob("*.py")]
YOURS = {"script.py", "mynets.py"}  # the reader's
PATHS = r"(?<![\w./])(?:(?:meanfield|solvers|tests|docs|examples)/[\w./*]*[\w/]|[\w/]+\.py)\b"


def lost(page, text):
    """Paths in the text, and links of the page, that lead nowhere; a file may be named without its folders"""
    names = {path.name for path in FILES} | YOURS
    for found in re.findall(PATHS, text):
        if found not in names and not any(ROOT.glob(found)):
            yield found
    for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", text):
        if not (page.parent / link).exists():
            yield link


def defined():
    """(name of the file, name of the function, class or method) in both packages"""
    for path in (path for path in FILES if path.parts[len(ROOT.parts)] in ("meanfield", "solvers")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield path.name, node.name
                inner = node.body if isinstance(node, ast.ClassDef) else []
                yield from ((path.name, f"{node.name}.{n.name}") for n in inner if isinstance(n, ast.FunctionDef))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_links_of_a_page_exist(page):
    assert list(lost(page, page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page):
    code = "\n".join(path.read_text(encoding="utf-8") for path in FILES if path.parent == ROOT / "tests")
    named = set(re.findall(r"`(test_\w+_\w+_\w+)`", page.read_text(encoding="utf-8")))
    assert named - set(re.findall(r"^def (test_\w+)\(", code, re.MULTILINE)) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_starts_with_what_it_is_for(page):
    title, first = page.read_text(encoding="utf-8").split("\n\n")[:2]
    assert re.fullmatch("# .*", title)
    assert re.match(r"[A-Z`*]", first), first[:60]  # no table, list, picture, code or heading


def test_every_page_and_every_example_has_its_place():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert {page.stem for page in PAGES[1:]} - {"index"} - set(re.findall(r"^[\w/.]+$", index, re.MULTILINE)) == set()
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert set(names()) - set(re.findall(r"\w+", " ".join(re.findall(r"^### (.*)$", gallery, re.MULTILINE)))) == set()


def test_what_leads_nowhere_is_found():
    text = "`gone.py`, meanfield/network/gone.py, solvers/gone/, [a](gone.md), meanfield/measures/keops.py, keops.py, [b](equations.md)"
    assert list(lost(ARCHITECTURE, text)) == ["gone.py", "meanfield/network/gone.py", "solvers/gone", "gone.md"]


def test_places_on_the_path_of_a_problem_exist():
    places = re.findall(r"([\w/]+\.py): `([\w.]+)`", ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(places) > 20
    assert {(path.rpartition("/")[2], name) for path, name in places} - set(defined()) == set()


def test_every_file_has_its_place_in_the_page_of_the_rooms():
    rooms = ARCHITECTURE.read_text(encoding="utf-8").partition("## The path")[0]
    files = Counter(path.name for package in ("meanfield", "solvers") for path in (ROOT / package).glob("*/*.py"))
    del files["__init__.py"]
    assert files - Counter(re.findall(r"\w+\.py", rooms)) == Counter()
