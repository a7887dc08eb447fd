"""Every example runs, keeps the files it promises, and finds what it says."""

import importlib
import math

import matplotlib
import pytest

from examples import names
from examples.__main__ import main as run_all

matplotlib.use("Agg")

FILES = {
    "demo": {
        "deviation.txt", "limit.nc", "report.nc", "loss.png", "test_loss.png", "outputs.png", "outputs_difference.png",
        "deviation.png", "variance.png", "feature_kernels.png", "tangent_kernels.png", "preactivations.png", "particles.png",
    },
    "gaussian_processes": {"gaussian_processes.png"},
    "gradient_flow": {"gradient_flow.png"},
    "lazy_to_rich": {"lazy_to_rich.png", "kernels.png"},
    "best_proxy": {"best_proxy.png"},
    "scaling_plane": {"scaling_plane.png", "powers.png"},
    "lazy_networks": {"prediction.png", "test_prediction.png", "learning_curves.png", "eigenvalues.png"},
    "width_in_two_scalings": {"width_in_two_scalings.png"},
    "depth_transfer": {"depth_transfer.png"},
    "deep_linear": {"deep_linear.png"},
    "random_labels": {"random_labels.png"},
    "tuned_widths": {"tuned_widths.png"},
    "deep_kernels": {"layer1.png", "layer2.png", "layer3.png", "lazy.png"},
    "multi_class": {"test_loss.png", "correct_logits.png", "kernels.png"},
    "own_activation": {"loss.png", "deviation.png"},
    "own_network": {"own_network.png"},
    "convolutional": {"convolutional.png"},
    "one_pass": {"one_pass.png"},
    "optimisers": {"optimisers.png"},
    "residual": {"residual.png"},
    "recurrent": {"recurrent.png"},
    "language_model": {"language_model.png", "one_letter.png"},
    "attention_maps": {"attention_maps.png"},
    "kernels_and_width": {"kernels_and_width.png"},
    "kernels_and_features": {"kernels_and_features.png"},
    "ensembles": {"ensembles.png"},
    "particle_clouds": {"particles.png", "particles.gif"},
    "quadrature_against_sampling": {"quadrature_against_sampling.png"},
    "standard_parameterizations": {"standard_parameterizations.png"},
    "single_outputs": {"training_outputs.png", "test_outputs.png"},
}  # fmt: skip

FINDINGS = {
    "best_proxy": lambda r: max(r["ic_mean_field"], r["ntk"]) < 0.3 < 1 < min(r["default"], r["sym_default"]),
    "scaling_plane": lambda r: max(map(abs, r.values())) < 0.2,
    "demo": lambda r: -0.75 < r["exponent"] < -0.3 and 0.5 < r["n_var"] / r["predicted_n_var"] < 2,
    "gaussian_processes": lambda r: (
        r["log p(y) / P, best fit"] >= r["log p(y) / P, best of the grid"]
        and r["test error, best fit"] < r["test error, median of the grid"]
        and min(r["accuracy"], r["within two standard deviations"]) > 0.85
    ),
    "gradient_flow": lambda r: 0.9 < r["order"] < 1.2,
    "lazy_to_rich": lambda r: 1.8 < r["power"] < 2.1 and r["alignment_rich"] > r["alignment_before"] + 0.4,
    "lazy_networks": lambda r: (
        0.3 < r["mean square of (f - mean) / std"] < 2.5
        and r["complexity, true labels"] < r["complexity, shuffled labels"]
    ),
    "width_in_two_scalings": lambda r: (
        r["difference at N*"] < 1e-5 and r["ntk, widest"] > r["mean_field, widest"] + 0.03
    ),
    "depth_transfer": lambda r: set(r.values()) == {0.8},
    "deep_kernels": lambda r: (
        r["limit, movement 3"] > 0.1 > 0.01 > r["lazy limit, movement 3"] and r["N = 128, movement 3"] > 0.1
    ),
    "deep_linear": lambda r: min(r["feature-learning limit"], r["network"]) > 0.5 > 0.3 > r["lazy limit"],
    "random_labels": lambda r: (
        r["loss at time 100, true over random"] < 0.5 and r["correlation of complexity and test error"] > 0.8
    ),
    # chosen on 100 images, measured on 100 others
    "tuned_widths": lambda r: 0.9 < r["equal widths over NTK"] < 1.1 and r["tuned widths over NTK"] < 1.02,
    "multi_class": lambda r: r["limit"] > 0.85 and abs(r["N = 128"] - r["limit"]) < 0.08,
    "own_activation": lambda r: -0.75 < r["power"] < -0.3,
    # six seeds over four times the width: a standard error of 0.2
    "own_network": lambda r: -1 < r["power"] < -0.2,
    "convolutional": lambda r: -1 < r["power"] < -0.2,
    # means over time and three students, each off by about N^(-1/2) in the log
    "one_pass": lambda r: (
        r["rate 0.04, limit from the equation"] < 0.3 * r["rate 0.4, limit from the equation"]
        and max(v for name, v in r.items() if "N = 64" in name) < 0.4
    ),
    "optimisers": lambda r: (
        len(r) == 12
        and sum(v for name, v in r.items() if "128" in name) < sum(v for name, v in r.items() if "32" in name)
    ),
    "residual": lambda r: -1 < r["power"] < -0.2,
    "recurrent": lambda r: -1 < r["power"] < -0.2,
    "language_model": lambda r: -1 < r["power"] < -0.2,
    "attention_maps": lambda r: -1 < r["power"] < -0.2,
    "kernels_and_features": lambda r: (
        max(r["Bayes, NNGP"], r["feature-learning limit"]) < 0.48
    ),  # 0.5 is nothing learned
    "kernels_and_width": lambda r: -1.1 < sum(r.values()) / 2 < -0.2,
    # ten means of 16 of 160 networks: a standard error of about 0.1
    "ensembles": lambda r: 0.5 < r["removed over predicted"] < 1.5 and r["variance"] > 0 < r["bias"],
    "particle_clouds": lambda r: r["directions_after"] < 0.5 * r["directions_before"],
    "quadrature_against_sampling": lambda r: -0.75 < r["iid"] < -0.3 and max(r["sobol"], r["gauss_hermite"]) < -0.75,
    # standard errors of six networks are a twelfth of their mean
    "standard_parameterizations": lambda r: (
        max(abs(r[f"{kind}, widest over its limit"] - 1) for kind in ("NTK", "improved standard")) < 0.3
        and r["naive standard, widest over its limit"] == math.inf
        and r["kernels, typical ratio"] < 1.1
    ),
    "single_outputs": lambda r: -0.75 < r["power"] < -0.3,
}


def test_every_example_is_tested():
    assert set(names()) == set(FILES) == set(FINDINGS)
    assert names()[0] == "demo"


@pytest.mark.parametrize("name", names())
def test_example_finds_what_it_says_and_keeps_its_files(name, tmp_path, capsys):
    module = importlib.import_module(f"examples.{name}")
    found = module.main(tmp_path / "deep" / name, quick=True)
    assert FINDINGS[name](found), found
    assert {path.name for path in (tmp_path / "deep" / name).iterdir()} == FILES[name]
    assert all(path.stat().st_size > 300 for path in (tmp_path / "deep" / name).iterdir())
    assert len(capsys.readouterr().out.splitlines()) >= 3
    assert "Expected:" in module.__doc__
    assert matplotlib.pyplot.get_fignums() == []


def test_examples_run_by_name_and_keep_nothing_without_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_all(("gradient_flow",), out=None, quick=True)
    assert "=== gradient_flow: Gradient descent" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit, match=r"unknown example: nonsense; known: demo, "):
        run_all(("nonsense",))
