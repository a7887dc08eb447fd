"""The regression check of tests/benchmarks sees what became slower; its page and its figures are the same; compiled peers are watched."""

import json
import re

import pytest
import torch

from tests.benchmarks import __main__ as command
from tests.benchmarks import regression, timing
from tests.benchmarks.compiled import Compiled

PAGE = "# Performance\n\n## A\n\n<!-- cpu made_up -->\n<!-- end -->\n\nMore.\n"


class MadeUp:
    """A benchmark with ratios that the test sets: rounds by row"""

    def __init__(self):
        self.rows = {"D = 2": ([5.0, 5.2, 5.5], "higher"), "D = 10": ([1.0, 1.1, 1.2], "lower")}
        self.asked = []

    def __call__(self, size=7):
        self.asked.append(size)
        print(f"| row | ratio |\n|---|---|\n| {len(self.rows)} rows | {size} |")
        return {"rows": {name: {"against": timing.over_rounds(*row)} for name, row in self.rows.items()}, "other": [1]}


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    benchmark = MadeUp()

    def made_up(size: int = 7):
        """what is asked for"""
        return benchmark(size)

    monkeypatch.setattr(command, "gathered", lambda *_: {"made_up": made_up})
    monkeypatch.setattr(regression, "DOCS", tmp_path)
    (tmp_path / "performance.md").write_text(PAGE)
    return benchmark


@pytest.fixture
def committed(made_up):
    command.main(["made_up", "--commit", "--set", "size=3"])
    return made_up


def test_a_committed_run_stands_in_both_files(committed, tmp_path):
    entry = json.loads((tmp_path / "performance.json").read_text())["cpu"]["made_up"]
    assert entry["options"] == {"size": 3}
    assert entry["ratios"]["rows, D = 2, against"] == {"min": 5.0, "median": 5.2, "max": 5.5, "better": "higher"}
    page = (tmp_path / "performance.md").read_text()
    assert "`python -m tests.benchmarks made_up --set size=3`" in page
    assert "| 2 rows | 3 |" in page
    assert page.endswith("<!-- end -->\n\nMore.\n")
    committed.rows.popitem()
    command.main(["made_up", "--commit"])  # takes the place of the first
    assert "| 2 rows | 3 |" not in (tmp_path / "performance.md").read_text()
    assert "| 1 rows | 7 |" in (tmp_path / "performance.md").read_text()


def test_an_equal_run_passes_with_the_committed_options(committed, capsys):
    command.main(["--check"])
    assert committed.asked == [3, 3]
    assert "made_up: 2 of 2 ratios as committed, 0 worse or missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "slower", "caught"),
    [
        ("D = 2", [4.0, 4.1, 3.9], True),
        ("D = 2", [4.0, 4.1, 5.1], False),  # within the spread
        ("D = 2", [4.7, 4.8, 4.9], False),  # beyond it, by less than the factor
        ("D = 2", [7.0, 7.0, 7.0], False),  # faster
        ("D = 10", [1.5, 1.6, 1.7], True),
        ("D = 10", [0.5, 0.6, 0.7], False),
    ],
)
def test_a_slower_run_is_caught_beyond_spread_and_factor(committed, capsys, row, slower, caught):
    committed.rows[row] = (slower, committed.rows[row][1])
    if caught:
        with pytest.raises(SystemExit) as ended:
            command.main(["--check", "made_up"])
        assert ended.value.code == 1
    else:
        command.main(["--check", "made_up"])
    out = capsys.readouterr().out
    assert ("| worse |" in out) == caught
    assert not caught or re.search(
        rf"\| rows, {row}, against \| .* \[.*\] \| {sorted(slower)[1]:.3g} \[.*\] \| worse", out
    )


def test_a_missing_row_is_named_and_a_new_one_too(committed, capsys):
    committed.rows["D = 64"] = committed.rows.pop("D = 2")
    with pytest.raises(SystemExit):
        command.main(["--check"])
    out = capsys.readouterr().out
    assert "| rows, D = 2, against | 5.2 [5, 5.5] | - | missing |" in out
    assert "| rows, D = 64, against | - | 5.2 [5, 5.5] | new |" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--check"], "no figures of any benchmark on cpu: --commit writes them"),
        (["--check", "made_up"], "no figures of made_up on cpu"),
        (["--check", "--set", "size=3"], "leave out --set"),
        (["--set", "length=3"], "give NAME=VALUE, a parameter of made_up"),
        (["unknown"], "unknown benchmark"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(made_up, capsys, arguments, words):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert words in capsys.readouterr().err
    assert made_up.asked == []


def test_a_page_without_a_place_is_refused_before_anything_runs(made_up, capsys, tmp_path):
    (tmp_path / "performance.md").write_text(PAGE.replace("made_up", "another"))
    with pytest.raises(SystemExit):
        command.main(["--commit"])
    assert "has no place for made_up: give it the lines <!-- cpu made_up -->" in capsys.readouterr().err
    assert made_up.asked == []


def test_the_page_shows_the_committed_figures():
    text = regression.page().read_text()
    for device in ("cpu", "cuda"):
        for name, entry in regression.committed_runs(device).items():
            start, stop = regression.place(text, name, device)
            assert text[start:stop] == regression.table(name, device, entry)


@pytest.mark.filterwarnings("ignore")  # of torch's own
def test_a_compiled_peer_that_falls_back_to_eager_is_noticed(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs: graph)  # without a compiler
    watch, x = Compiled(lambda x: (x * x).sum()), torch.ones(3)
    watch.first(lambda: watch(x))
    assert float(watch(x)) == 3
    assert watch.state == ""
    with torch.compiler.set_stance("force_eager"):
        assert float(watch(x)) == 3
    assert watch.state == "fell back to eager"


@pytest.mark.filterwarnings("ignore")
def test_a_missing_compiler_is_a_sentence(monkeypatch):
    def absent(graph, inputs):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", absent)
    watch = Compiled(lambda x: x + 1)
    watch.first(lambda: watch(torch.ones(3)))
    assert re.fullmatch(r"not compiled: .*no C\+\+ compiler.*", watch.state)


@pytest.mark.filterwarnings("ignore")
def test_a_graph_break_is_a_sentence(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs: graph)
    watch = Compiled(lambda x: x + 1 if float(x.sum()) > 0 else x)
    watch.first(lambda: watch(torch.ones(3)))
    assert watch.state.startswith("not compiled: ")
