"""What averaging takes off the loss of networks, and what it leaves: predicted beside ensembles that are really averaged."""

import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, PredictedBias, PredictedVariance, predicted_bias, predicted_variance

matplotlib.use("Agg")
pytest.importorskip("matplotlib.pyplot")
DATA = mf.digits((0, 1), n_train=4, n_test=6)


def problem(loss="squared", steps=6):
    return mf.Problem(DATA, mf.Network(2, "tanh"), mf.mean_field(1.0), mf.Training(0.3, steps), loss)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_ensembles_really_averaged_have_the_predicted_loss(loss, tmp_path):
    """800 networks of width 48, alone and in means of 8, within 4 standard errors, of which 0.0002 are the limit's and the next order's"""
    asked, width = problem(loss), 48
    nets = FiniteWidth(width, dtype="float32", snapshots=(), keep_neurons=False).ensemble(asked, 800)
    variance, bias = predicted_variance(asked, 256, groups=2), predicted_bias(asked, 32, 80)
    limit = CausalDMFT(8192, groups=2)(asked)
    for test in (False, True):
        found = mf.ensemble_loss(limit, variance, bias, nets, (8, 1), test=test)
        assert found.ensembles == (1, 8)
        assert found.measured.shape == (1, 2)
        for k, e in enumerate(found.ensembles):
            error = math.hypot(
                found.measured_se[0, k], found.n_bias_se / width, found.n_variance_se / (width * e), 2e-4
            )
            assert found.expected(width, e) == pytest.approx(found.measured[0, k], abs=4 * error)
        taken = found.measured[0, 0] - found.measured[0, 1]  # the same networks: far more exact than either
        assert taken == pytest.approx(7 / 8 * found.removed(width), rel=0.15)
        assert f"loss {found.limit:.4g} + (" in str(found)
        assert mf.load(mf.save(found, tmp_path / "loss.nc")) == found
        axes = mf.plot.ensemble_loss(found)
        bars = [c.lines[0].get_ydata() for c in axes.containers]
        assert np.allclose(np.array(bars).T, found.measured)
        axes.figure.draw_without_rendering()


def test_its_terms_are_slope_and_curvature_of_the_loss(tmp_path):
    """The squared loss of two outputs by hand: slope (f - y) / 2, curvature 1 / 2, V = diag(1, 3), N bias = (2, 4) with errors of 1"""
    data = mf.Dataset(torch.eye(2), torch.tensor([1.0, -1.0]))
    asked = mf.Problem(data, training=mf.Training(0.1, 0))
    f = torch.tensor([[[0.5], [0.0]]], dtype=torch.float64)
    limit = mf.Solution(problem=asked, solver={"name": "made"}, f=f, f_test=None, state={})
    told = asked, (0,), {"f": f}, {"f": torch.arange(2).reshape(1, 2, 1)}, {"method": "made", "draws": 2}
    variance = PredictedVariance(*told, ("all",), torch.diag(torch.tensor([1.0, 3.0])).double()[None, None])
    bias = PredictedBias(*told, torch.tensor([[1.0, 5.0], [3.0, 3.0]]).double())  # covariance of the mean: 1 and -1
    found = mf.ensemble_loss(limit, variance, bias)
    assert found.limit == pytest.approx((0.5**2 + 1) / 4)
    assert found.n_variance == pytest.approx((1 + 3) / 4)
    assert found.n_bias == pytest.approx(-0.5 / 2 * 2 + 1 / 2 * 4)
    assert found.n2_bias2 == pytest.approx((2**2 + 4**2 - 1 - 1) / 4)
    assert math.isnan(found.n_variance_se)  # one group
    assert found.measured is None
    assert found.expected(10, 5) == pytest.approx(found.limit + 1 / 50 + 1.5 / 10 + 4.5 / 100)
    mf.plot.ensemble_loss(found).figure.draw_without_rendering()
    again = mf.load(mf.save(found, tmp_path / "loss.nc"))
    assert again == found
    assert replace(found, n_bias=found.n_bias + 1e-15) != again


def test_predictions_that_lack_something_are_refused():
    asked = problem()
    limit, bias = CausalDMFT(256)(asked), predicted_bias(asked, 16, 2)
    some = predicted_variance(asked, 64, groups=1, points=(0,))
    with pytest.raises(
        ValueError, match=r"PredictedVariance needs all of f at the last step, 6: received steps=\(6,\)"
    ):
        mf.ensemble_loss(limit, some, bias)
    early = predicted_variance(asked, 64, groups=1, steps=(2,))
    with pytest.raises(ValueError, match=r"needs all of f at the last step, 6: received steps=\(2,\); leave out steps"):
        mf.ensemble_loss(limit, early, bias)
    with pytest.raises(ValueError, match="must be of one problem"):
        mf.ensemble_loss(limit, predicted_variance(problem("logistic"), 64, groups=1), bias)
    with pytest.raises(ValueError, match="nets must be finite networks: received a solution of CausalDMFT"):
        mf.ensemble_loss(limit, predicted_variance(asked, 64, groups=1), bias, [limit])
