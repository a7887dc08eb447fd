"""The code of README.md and of the pages of docs that teach runs, one block after the other, at small sizes, and prints what it says."""

import math
import re

import matplotlib
import pytest

import meanfield as mf
from tests.running import ROOT

matplotlib.use("Agg")

PAGES = ("README.md", "docs/start.md", "docs/networks.md", "docs/own_data.md")
CODE = r"```python\n(.*?)```"
BLOCKS = [(p, b) for p in PAGES for b in re.findall(CODE, (ROOT / p).read_text(encoding="utf-8"), re.DOTALL)]
OWN = {"groups=4": "256, groups=2", "(64, 256, 1024)": "(8, 32)", "seeds=16": "seeds=3", "steps=40": "steps=3"}
SMALLER = [  # what each block says, and what is run instead
    OWN,
    {
        "n_train=32, n_test=64": "n_train=4, n_test=2",
        "particles=2**14": "particles=2**7",
        "predicted_variance(problem)": "predicted_variance(problem, particles=2**7)",
        "(64, 128, 256, 512)": "(8, 32)",
        "seeds=16": "seeds=3",
        "steps=60": "steps=3",
    },
    {"mf.Network(3, ": "mf.Network(2, "},
    OWN,
    {},
    {"(64, 256)": "(8, 32)", "range(8)": "range(3)", "WassersteinFlow()": "WassersteinFlow(2**10)"},
    {},
    {},
    {},
    {"2**13": "2**7", "(32, 128, 512)": "(8, 32)", "seeds=8": "seeds=3"},
    {},
    {"2**13": "2**7"},
    {"2**13": "2**7"},
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What was printed, the names that stand after all blocks but those of own data, and the folder in which they ran"""
    printed, folder = [], tmp_path_factory.mktemp("readme")
    names = {"__name__": "readme", "print": printed.append}
    apart = {"docs/own_data.md": dict(names)}  # the others go on from one another
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for (page, block), smaller in zip(BLOCKS, SMALLER, strict=True):
            for said, run in smaller.items():
                assert said in block
                block = block.replace(said, run)
            exec(compile(block, page, "exec"), apart.get(page, names))
    matplotlib.pyplot.close("all")
    return printed, names, folder


def test_its_network_is_compared_with_its_limit_by_name(ran):
    report = ran[0][0]
    assert report.widths == (8, 32)
    kernels = {"Phi[mix]", "Phi[out]", "G[read]", "G[mix]", "tangent_kernel"}
    assert set(report.observables) == {"loss", "test_loss", "f", "f_test"} | kernels
    assert report["f"].deviation[1] < report["f"].deviation[0]
    assert ran[1]["limit"].standard_errors["f_test"].shape == (4, 16, 1)


def test_its_report_is_kept_and_its_kernels_are_those_of_the_data(ran):
    printed, names, folder = ran
    assert mf.load(folder / "digits.nc") == printed[1]
    assert names["ntk"].shape == (4, 4)
    assert math.isfinite(names["prediction"].mean.sum())


def test_its_architecture_says_what_its_page_says(ran):
    calm = ran[1]["problem"].architecture
    by_name = {p.name: p for p in calm.description}
    assert (calm.name, calm.std(by_name["mix.weight"]), calm.std(by_name["read.weight"])) == ("calm", 0.5, 1.0)
    assert [calm.rate_of(by_name[name]) for name in ("read.bias", "norm.weight", "out.weight")] == [0.1, 0.0, 1.0]


def test_own_data_is_what_its_page_says(ran):
    """What is printed stands in the page behind the line that prints it"""
    told = re.findall(r"print\(.*\)  # (.*)", (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8"))
    printed = [str(thing) for thing in ran[0]]
    assert len(told) == 5
    assert [line for line in told if line not in printed] == []
    assert (ran[2] / "deviation.png").stat().st_size > 10_000
