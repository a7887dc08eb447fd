"""The regression check of tests/benchmarks sees what became slower; its page and its figures are the same; compiled peers are watched."""

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import meanfield as mf
import tests.benchmarks
from solvers import CausalDMFT
from tests.benchmarks import __main__ as command
from tests.benchmarks import any_networks, dmft_speed, ensembles, regression, timing
from tests.benchmarks.compiled import Compiled
from tests.running import gathered

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


def _as_it_is(graph, inputs):
    return graph


@pytest.mark.filterwarnings("ignore")  # of torch's own
def test_a_compiled_peer_that_falls_back_to_eager_is_noticed():
    watch, x = Compiled(lambda x: (x * x).sum(), _as_it_is), torch.ones(3)
    watch.first(lambda: watch(x))
    assert float(watch(x)) == 3
    assert watch.state == ""
    with torch.compiler.set_stance("force_eager"):
        assert float(watch(x)) == 3
    assert watch.state == "fell back to eager"


@pytest.mark.filterwarnings("ignore")
def test_a_missing_compiler_is_a_sentence():
    def absent(graph, inputs):
        raise RuntimeError("no C++ compiler\nand more")

    watch = Compiled(lambda x: x + 1, absent)
    watch.first(lambda: watch(torch.ones(3)))
    assert re.fullmatch(r"not compiled: .*no C\+\+ compiler.*", watch.state)


@pytest.mark.filterwarnings("ignore")
def test_a_graph_break_is_a_sentence():
    watch = Compiled(lambda x: x + 1 if float(x.sum()) > 0 else x, _as_it_is)
    watch.first(lambda: watch(torch.ones(3)))
    assert watch.state.startswith("not compiled: ")


BENCHMARKS = gathered(tests.benchmarks, "BENCHMARKS")


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_the_check_looks_after_every_benchmark(name):
    entry = regression.committed_runs("cpu").get(name)
    assert entry, f"python -m tests.benchmarks {name} --commit puts it under the regression check"
    assert entry["ratios"], f"{name} returns no ratio made by timing.over_rounds, or was committed before it did"


class Products(TorchDispatchMode):
    """Adds up the operations of all that has a name like a product's"""

    def __init__(self):
        super().__init__()
        self.operations, self.names = 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if "mm" in name or "mv" in name or name == "dot":
            left, right = [a for a in arguments if isinstance(a, torch.Tensor)][-2:]
            self.operations += 2 * left.numel() * (right.shape[-1] if right.ndim > 1 else 1)
            self.names.add(name)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(("activation", "depth", "classes"), [("tanh", 3, (0, 1)), ("relu", 2, (0, 1, 2))])
def test_all_products_of_a_sweep_are_counted(activation, depth, classes):
    data = mf.digits(classes, n_train=6, n_test=2)
    asked = mf.Problem(data, mf.Network(depth, activation), mf.mean_field(1.0), mf.Training(0.1, 5))
    solver = CausalDMFT(128, two_time=True)
    with Products() as products:
        solver(asked)
    assert {"mm", "addmm_"} <= products.names
    assert dmft_speed.operations(lambda: solver(asked)) == products.operations


def test_a_sweep_over_its_products_takes_the_rate_before_and_after():
    clocks = dict(processor=1.0, ranks=[], peak_gb=1.0, before_gb=0.5)
    runs = [clocks | dict(wall=w, rates=[1e9, 2e9]) for w in (3.0, 6.0, 4.5)]  # 2e9 operations take 2 s or 1 s
    ratio = dmft_speed._row(runs, 2 * 10**9)["over products"]
    assert ratio.pop("better") == "lower"
    assert ratio == pytest.approx({"min": 2, "median": 3, "max": 4})


def test_sweep_and_fixed_point_are_compared_by_seed():
    def run(*f) -> Any:
        return SimpleNamespace(f=torch.tensor(f, dtype=torch.float64), stats={"iterations": 4})

    row = dmft_speed._compared([(1, 10), (2, 40)], [(run(3.0, 5), run(3, 6.0)), (run(3.0, 3), run(3, 6.0))])
    assert row["times"] == {"min": 10, "median": 15, "max": 20, "better": "higher"}
    assert row["sweep spread"] == pytest.approx(2**0.5 / 5)  # means (3, 4) and (3, 6)
    assert row["fixed point spread"] == 0
    assert row["difference"] == pytest.approx(2 / 5)
    assert row["standard error"] == pytest.approx(1 / 5)


def test_small_runs_have_ratios(capsys):
    found = dmft_speed.dmft_solvers(samples=512, steps=(2, 3), seeds=2)
    assert list(regression.ratios(found)) == ["T = 2, times", "T = 3, times"]
    found = ensembles.ensembles(widths=(4, 8), seeds=3, repetitions=2)
    assert list(regression.ratios(found)) == [f"{n}, {clock}" for n in (4, 8) for clock in ("wall", "processor")]
    assert "| 4 | 3 |" in capsys.readouterr().out


def test_small_runs_of_modules_have_ratios():
    sizes = {"convolutions": ((64, 128), {2: 3, 4: 3, 8: 2}), "transformer": ((512,), {2: 3, 4: 3, 8: 2})}
    found = any_networks.networks_to_error(0.1, 2, sizes, 1)
    assert list(regression.ratios(found)) == [f"{name}, ratio" for name in sizes]
    assert all(row["N"] > 0 < row["ratio"]["median"] for row in found.values())
    assert len(regression.ratios(any_networks.network_products(512, 1, 1))) == 4
    assert list(regression.ratios(any_networks.filter_bases(128, 1, 1))) == ["first", "later", "numbers"]
    assert len(regression.ratios(any_networks.network_growth(128, 2, 1, 1))) == 5
    found = any_networks.perceptron_as_module(64, 1, {"tanh": ("tanh", 2, 4, 2)})
    kinds = ("defaults", "loop")
    assert list(regression.ratios(found)) == [f"tanh, 4 + {tested}, {kind}" for tested in (0, 4) for kind in kinds]


@pytest.mark.slow
@pytest.mark.processes
def test_a_small_run_of_each_sweep_is_measured_in_a_process_of_its_own(capsys):
    found = dmft_speed.dmft_speed(repetitions=1, samples=64, steps=2, problems=(("tanh", 2, 8),))
    rows = [f"tanh, L = 2, P = 8, {kernels}" for kernels in ("snapshots", "all pairs of steps")]
    assert list(regression.ratios(found)) == [f"{row}, over products" for row in rows]
    assert found[rows[1]]["operations"] > found[rows[0]]["operations"] > 0
    assert len(re.findall(r"\n\| tanh, L = 2, P = 8 \| ", capsys.readouterr().out)) == 2
