"""Pages: one file that needs nothing else, holds what was asked and what came, and escapes what comes from results."""

import re
import shutil
import subprocess
from dataclasses import replace

import matplotlib
import pytest

import meanfield as mf
from meanfield.page import writing
from meanfield.page.sure import how_sure
from solvers import CausalDMFT, FiniteWidth, FixedPointDMFT
from solvers.command_line.main import main

matplotlib.use("Agg")

EVIL = '<script>alert("x")</script>'
DATA = replace(mf.single_index_teacher(n_train=5, n_test=3, inputs=3), name=EVIL)
PROBLEM = mf.Problem(DATA, mf.Network(2), training=mf.Training(steps=4))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results, and the text of their page"""
    steps = (0, 2, -1)
    limit = CausalDMFT(64, groups=2, snapshots=steps)(PROBLEM)
    nets = [net for width in (8, 16, 32) for net in FiniteWidth(width, snapshots=steps).ensemble(PROBLEM, 3)]
    report = mf.deviation(nets, limit)
    path = mf.write_page([limit, *nets, report], tmp_path_factory.mktemp("page") / "page.html", f"Title {EVIL}")
    return limit, nets, report, path


def test_a_page_holds_what_was_asked_and_what_came(found):
    limit, nets, report, path = found
    html = path.read_text()
    for title in (
        "What was asked",
        "What came",
        "How sure it is",
        "Kernels over time",
        "Layer by layer",
        "Deviation report",
        "How it was made",
    ):
        assert f"<h2>{title}</h2>" in html
    assert html.count("network, N = ") == len(nets)
    assert f"{limit.loss[0]:.4g} → {limit.loss[-1]:.4g}" in html
    assert report.table().splitlines()[0].replace("<", "&lt;")[:40] in html
    assert "width 8, 16, 32" in html
    times = {float(t) for t in re.findall(r'data-when="time ([^"]+)"', html)}
    assert times == {float(f"{t:.3g}") for t in PROBLEM.training.times_of([0, 2, 4])}


def test_a_limit_says_how_sure_it_is():
    """By hand: the scatter of groups, and of seeds, relative to the outputs; the last change of an iteration"""
    grouped = CausalDMFT(64, groups=2)(PROBLEM)
    single = [CausalDMFT(64, seed=seed)(PROBLEM) for seed in (0, 1)]
    iterated = FixedPointDMFT(160)(PROBLEM)
    limits = [grouped, *single, iterated]
    of_groups, of_seeds, alone = (how_sure(run, limits) for run in (grouped, single[0], iterated))
    assert (
        of_groups[2]
        == f"± {grouped.standard_errors['f'][-1].norm() / grouped.f[-1].norm():.1%} of their size, from 2 groups"
    )
    one, other = (run.f[-1] for run in single)
    apart = (one - other).norm() / 2**0.5 / ((one + other) / 2).norm()
    assert of_seeds[2].startswith(f"± {apart:.1%} of their size, from 2 seeds")
    assert "meanfield certify" in of_seeds[3]
    assert f"changed the kernels by {iterated.stats['changes'][-1]:.1e}" in alone[3]
    assert alone[2].startswith("not known")


@pytest.fixture
def without_pictures(monkeypatch):
    monkeypatch.setattr(writing.everything, "of_runs", lambda runs, options: {})
    monkeypatch.setattr(writing, "_over_time", lambda runs: ())


def test_a_run_without_test_samples_has_a_page(tmp_path, without_pictures):
    data = mf.single_index_teacher(n_train=4, n_test=0, inputs=2)
    run = FiniteWidth(8)(mf.Problem(data, training=mf.Training(steps=2)))
    html = mf.write_page(run, tmp_path / "page.html").read_text()
    assert "What came" in html
    assert "How sure it is" not in html  # of limits


def test_the_shell_tests_deep_limits_for_the_page(tmp_path, monkeypatch, without_pictures):
    monkeypatch.chdir(tmp_path)
    mf.save(CausalDMFT(160)(PROBLEM), "deep.nc")
    mf.save(CausalDMFT(160, two_time=False)(PROBLEM), "short.nc")
    assert main(["report", "deep.nc", "short.nc", "--certify"]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "certificate of steps 0 to 4 of 4" in html
    assert "none: the certificate needs the kernels at all steps" in html


def test_a_page_needs_nothing_else_and_runs_nothing_of_a_result(found):
    html = found[-1].read_text()
    assert len(html) < writing.LARGEST
    assert EVIL not in html
    assert "&lt;script&gt;alert" in html
    assert html.count("<script>") == 1  # the slider's
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    ("results", "name", "message"),
    [
        ("limit", "page.txt", "ends in .html"),
        ("limit", "nowhere/page.html", "does not exist: create"),
        ((), "page.html", "results is empty"),
    ],
)
def test_what_cannot_be_written_is_refused(found, tmp_path, results, name, message):
    with pytest.raises(ValueError, match=message):
        mf.write_page(found[0] if results == "limit" else results, tmp_path / name)


def test_a_page_that_would_be_too_large_is_refused(found, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "LARGEST", 1000)
    with pytest.raises(ValueError, match="give fewer results"):
        mf.write_page(found[0], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_the_shell_makes_pages_that_name_files_and_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = [
        "--data",
        "single-index",
        "--data.n-train",
        "5",
        "--data.n-test",
        "3",
        "--data.inputs",
        "3",
        "--training.steps",
        "4",
    ]
    assert main(["flow", "--out", "run.nc", *tiny, "--solver.particles", "8"]) == 0
    assert main(["report", "run.nc"]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "meanfield flow --out run.nc --data single-index" in html
    assert main(["report", "run.nc"]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser, chromium")
def test_the_slider_works_in_a_browser_and_nothing_complains(found, tmp_path):
    """A script moves the slider to its start and writes what it sees, and any error, into the page"""
    probe = """<script>
      const errors = []; window.addEventListener("error", e => errors.push(e.message));
      window.addEventListener("load", () => {
        const slider = document.querySelector(".time input"); slider.value = 0; slider.dispatchEvent(new Event("input"));
        const shown = [...document.querySelectorAll("figure")].map(f => [...f.querySelectorAll("img")].filter(i => !i.hidden).length);
        const broken = [...document.images].filter(i => !i.hidden && !i.naturalWidth).length;
        document.body.dataset.probe = JSON.stringify([errors.length, Math.min(...shown), Math.max(...shown), broken,
          document.querySelector(".time output").textContent]);
      });
    </script>"""
    page = tmp_path / "probed.html"
    page.write_text(found[-1].read_text().replace("</head>", f"{probe}</head>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --virtual-time-budget=10000 --dump-dom"
    command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert 'data-probe="[0,1,1,0,&quot;time 0&quot;]"' in seen
