"""The tutorials run from top to bottom, at small sizes, and draw their pictures; the site runs them in full (`make docs`)."""

import matplotlib
import pytest

from tests.running import ROOT

matplotlib.use("Agg")

FOLDER = ROOT / "examples" / "tutorials"
SMALLER = {  # what each says, what is run instead, and how many pictures it draws
    "1_what_a_limit_is": (
        {"range(8)": "range(2)", "128, 1024": "20, 24", "particles=4096": "particles=64", "steps=50": "steps=4"}
        | {"(32, 64, 128, 256, 512)": "(8, 16)", "seeds=12": "seeds=3", "n_train=16": "n_train=6"},
        3,
    ),
    "2_from_lazy_to_rich": (
        {"n_train=32, n_test=128": "n_train=6, n_test=4", "steps=80": "steps=4", "particles=8192": "particles=64"}
        | {"(64, 256, 1024)": "(8, 16)"},
        2,
    ),
    "3_deep_networks_and_their_certificate": (
        {"n_train=12, n_test=24": "n_train=4, n_test=2", "steps=40": "steps=3", "samples=2048": "samples=128"}
        | {"(64, 256, 1024)": "(8, 16)", "seeds=8": "seeds=3", "groups=4": "groups=2"},
        2,
    ),
    "4_your_own_network": (
        {"n_train=16, n_test=32": "n_train=4, n_test=2", "steps=30": "steps=3", "samples=2048": "samples=128"}
        | {
            "training)))": "training), (8, 16, 24), 3))",
            "coordinate_check(problem)": "coordinate_check(problem, (8, 16, 24), 3)",
        }
        | {"(32, 128, 512)": "(8, 16)", "seeds=8": "seeds=3", "groups=4": "groups=2"},
        2,
    ),
    "5_how_wide": (
        {"n_train=8, n_test=16": "n_train=3, n_test=2", "steps=20": "steps=2", "particles=512": "particles=64"}
        | {"width=64, draws=100": "width=16, draws=20", "samples=4096": "samples=128", "groups=4": "groups=2"}
        | {"(32, 64, 128, 256)": "(8, 16)", "seeds=32": "seeds=16"},
        3,
    ),
}


def test_every_tutorial_is_run():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SMALLER)


@pytest.mark.parametrize("name", SMALLER)
def test_it_runs_to_its_end(name, capsys):
    text, (smaller, pictures) = (FOLDER / f"{name}.py").read_text(encoding="utf-8"), SMALLER[name]
    for said, run in smaller.items():
        assert said in text
        text = text.replace(said, run)
    exec(compile(text, name, "exec"), {"__name__": name})
    assert len(matplotlib.pyplot.get_fignums()) == pictures
    matplotlib.pyplot.close("all")
    assert len(capsys.readouterr().out.splitlines()) > 5
