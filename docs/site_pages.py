"""What the site shows beside the pages as they stand: reference pages by room, docstrings as markup, links to equations, MathJax."""

from __future__ import annotations

import html
import inspect
import re
import shutil
from collections import defaultdict
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import typeset  # beside this file
from docutils import nodes

HERE = Path(__file__).parent
NUMBER = r"\d+[a-z]?"
CITED = re.compile(rf"\b([Ee]quations?)(\s+){NUMBER}(?:(?:,\s+|\s+and\s+|\s+to\s+){NUMBER})*")
ABOVE = {"CHANGELOG": "changes", "README": "start"}  # pages of the site in their place
LONG = 12  # rows of a table that is folded
COLON = "\ue000"  # stands for one where napoleon must not see it
TITLES = {
    "meanfield.problem": "Problems: data, losses, training",
    "meanfield.network": "Networks",
    "meanfield.scaling": "Scalings",
    "meanfield.measures": "Particle measures",
    "meanfield.kernels": "Kernels and Gaussian processes",
    "meanfield.solution": "Solutions",
    "meanfield.comparison": "Comparisons and reports",
    "meanfield.files": "Files",
    "meanfield.plot": "Pictures",
    "meanfield.page": "Pages",
    "solvers.two_layer": "Solvers: two layers",
    "solvers.dmft": "Solvers: deep networks",
    "solvers.finite": "Solvers: networks of finite width",
    "solvers.lazy": "Solvers: lazy limits",
    "solvers.fluctuations": "What a finite width adds",
    "solvers.studies": "Studies of many runs",
    "solvers.running": "Runs: checkpoints, processes, failures",
}


def setup(app: Any) -> None:
    """Called from conf.py"""
    app.connect("builder-inited", _copy_mathjax)
    app.connect("builder-inited", _write_reference)
    app.connect("source-read", _typeset)
    app.connect("doctree-resolved", _fold_tables)
    app.connect("autodoc-process-signature", _without_factories)
    app.connect("autodoc-process-docstring", _markup, priority=100)  # before napoleon reads "Args:"
    app.connect("autodoc-process-docstring", _colons, priority=900)  # after it


def public() -> dict[str, list[tuple[str, Any]]]:
    """Every public name, as room: (full name, object), in alphabetical order"""
    import meanfield
    import solvers

    rooms: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for package in (meanfield, solvers, meanfield.plot):
        for name in sorted(package.__all__, key=str.lower):
            found = getattr(package, name)
            if not isinstance(found, ModuleType):
                rooms[room(found)].append((f"{package.__name__}.{name}", found))
    return rooms


def ordered(rooms: dict[str, Any]) -> list[str]:
    """As in TITLES; what is new here comes last"""
    return [*(name for name in TITLES if name in rooms), *(name for name in rooms if name not in TITLES)]


def room(found: Any) -> str:
    """meanfield.kernels of a function of meanfield.kernels.spectrum"""
    return ".".join(found.__module__.split(".")[:2])


def page(title: str, names: list[tuple[str, Any]]) -> str:
    """A page of the reference: a list of what it holds, then each"""
    held = ", ".join(f":py:obj:`~{name}`" for name, _ in names)
    parts = [title, "=" * len(title), "", held, ""]
    for name, found in names:
        kind = "class" if inspect.isclass(found) else "function"
        short = name.rpartition(".")[2]
        parts += [short, "-" * len(short), "", f".. auto{kind}:: {name}", ""]
        if inspect.isclass(found) and issubclass(found, BaseException):
            parts[-2:] = [f".. autoexception:: {name}", ""]
    return "\n".join(parts)


def _write_reference(app: Any) -> None:
    folder, rooms = Path(app.srcdir) / "reference", public()
    folder.mkdir(exist_ok=True)
    for name, held in rooms.items():  # a room that is new here has its own name for a title
        _write(folder / f"{name}.rst", page(TITLES.get(name, name), held))


def _write(path: Path, text: str) -> None:
    """Only what has changed, so that Sphinx reads only that again"""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _copy_mathjax(app: Any) -> None:
    source = Path(str(resources.files("mathjax"))) / "static" / "mathjax" / "es5"
    target = Path(app.outdir) / "_static" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source / "tex-chtml.js", target)
    shutil.copytree(source / "output" / "chtml", target / "output" / "chtml", dirs_exist_ok=True)


def _typeset(app: Any, name: str, source: list[str]) -> None:
    """Formulas as such, and for each equation a target, to which "equations 20 to 22" in a docstring leads"""
    if name == "equations":
        source[0] = typeset.page(source[0])
        source[0] = re.sub(rf"^\*\*\(({NUMBER})\)\*\*", r"(eq-\1)=\n**(\1)**", source[0], flags=re.MULTILINE)
    elif name == "reference":
        source[0] = source[0].replace("reference/*", "\n".join(f"reference/{held}" for held in ordered(public())))
    elif (Path(app.srcdir) / f"{name}.md").exists():
        source[0] = re.sub(r"\[([^\]]*)\]\(\.\./(\w+)\.md\)", _beside_the_readme, typeset.prose(source[0]))


def _beside_the_readme(link: re.Match[str]) -> str:
    """Pages outside this folder are not of the site: those that it includes are meant, of others the name stands"""
    page = ABOVE.get(link[2])
    return f"[{link[1]}]({page}.md)" if page else link[1]


def _fold_tables(app: Any, tree: nodes.document, name: str) -> None:
    """Long tables of figures lie behind a line that says what they hold"""
    if not name.startswith(("accuracy", "performance")):
        return
    for table in list(tree.findall(nodes.table)):
        rows, head = len(list(table.findall(nodes.row))) - 1, next(iter(table.findall(nodes.row)), None)
        if rows < LONG or head is None:
            continue
        columns = " · ".join(text for entry in head.findall(nodes.entry) if (text := entry.astext()))
        opened = f"<details><summary>{rows} rows: {html.escape(columns)}</summary>"
        parent = table.parent
        parent.insert(parent.index(table), nodes.raw("", opened, format="html"))
        parent.insert(parent.index(table) + 1, nodes.raw("", "</details>", format="html"))


def linked(text: str) -> str:
    """Numbers of equations that a docstring cites, as links"""

    def link(match: re.Match[str]) -> str:
        return re.sub(rf"{NUMBER}", lambda number: f":ref:`{number[0]} <eq-{number[0]}>`", match[0])

    return CITED.sub(link, text)


def escaped(line: str) -> str:
    """A line of a docstring as reStructuredText that shows what is written: literals stay, all other marks mean themselves"""
    pieces = re.split(r"(`+[^`]+`+)", line)
    pieces[1::2] = [f"``{piece.strip('`')}``" for piece in pieces[1::2]]
    pieces[::2] = [linked(re.sub(r"([*|\\]|_\b|_$)", r"\\\1", piece)) for piece in pieces[::2]]
    return "".join(pieces)


def _markup(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    code = False
    for i, line in enumerate(lines):
        code = line.lstrip().startswith((">>>", "...")) or (code and bool(line.strip()))
        if not code:
            lines[i] = escaped(line)
            if what in ("attribute", "property"):  # where napoleon takes what stands before a colon for a type
                lines[i] = lines[i].replace(":", COLON)


def _without_factories(
    app: Any, what: str, name: str, found: Any, options: Any, taken: str | None, given: str | None
) -> Any:
    """Defaults that are objects are no Python in a signature, which then shows full paths of types"""
    return (re.sub(r"= <[^<>]*>", "= ...", taken), given) if taken and "= <" in taken else None


def _colons(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace(COLON, ":") for line in lines]
