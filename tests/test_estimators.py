"""Gaussian processes with scikit-learn's interface: by its own tools, and against the processes themselves."""

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import meanfield as mf
from meanfield import GaussianProcessClassifier, GaussianProcessRegressor
from tests.test_gaussian_process import Positions

NETWORK = mf.Network(2, "relu", 1.4, 0.3)
DRAWS = np.random.default_rng(0)
X, Z = DRAWS.normal(size=(30, 3)), DRAWS.normal(size=(7, 3))
Y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], 1)
LABELS = np.where(X[:, 0] > 0.5, "high", np.where(X[:, 0] < -0.5, "low", "middle"))


def test_predictions_are_those_of_the_process():
    process = mf.GaussianProcess(NETWORK, mf.improved_standard(64), 0.1, "ntk").posterior(X, Y)
    found = GaussianProcessRegressor(NETWORK, mf.improved_standard(64), 0.1, "ntk").fit(X, Y)
    mean, std = found.predict(Z, return_std=True)
    assert np.array_equal(mean, process.mean(Z).numpy())
    assert np.array_equal(std, process.std(Z).numpy())
    covariance = found.predict(Z, return_cov=True)[1]
    assert covariance.shape == (7, 7, 2)
    assert np.array_equal(covariance[:, :, 1], process.covariance(Z).numpy())
    assert (found.n_features_in_, found.process_) == (3, process.process)
    assert abs(found.score(X, Y) - r2_score(Y, found.predict(X))) < 1e-12


def test_targets_of_one_column_stay_one():
    found = GaussianProcessRegressor(NETWORK).fit(X, Y[:, 0])
    assert [part.shape for part in found.predict(Z, return_std=True)] == [(7,), (7,)]
    assert found.predict(Z, return_cov=True)[1].shape == (7, 7)
    assert abs(found.score(X, Y[:, 0]) - r2_score(Y[:, 0], found.predict(X))) < 1e-12
    assert GaussianProcessRegressor(NETWORK).fit(X, Y[:, :1]).predict(Z).shape == (7, 1)


def test_targets_at_positions_keep_their_shape():
    y = np.stack([np.sin(X), np.cos(X)], 2)
    for targets, shape in ((y, (7, 3, 2)), (y[..., 0], (7, 3))):
        found = GaussianProcessRegressor(Positions).fit(X, targets)
        mean, std = found.predict(Z, return_std=True)
        assert mean.shape == std.shape == shape
        assert np.array_equal(mean.reshape(7, 3, -1), found.posterior_.mean(Z).numpy().reshape(7, 3, -1))
        assert found.predict(Z, return_cov=True)[1].shape == (7, 3, 7, 3, *shape[2:])
        apart = r2_score(targets.reshape(30, -1), found.predict(X).reshape(30, -1))
        assert abs(found.score(X, targets) - apart) < 1e-12


def test_a_fit_may_choose_its_numbers():
    found = GaussianProcessRegressor(NETWORK, over=("noise", "weight_std")).fit(X, Y)
    assert found.process_ == mf.GaussianProcess(NETWORK, noise=0.01).fitted(X, Y, ("noise", "weight_std"))
    assert (found.noise, found.network) == (0.01, NETWORK)  # settings stay


@pytest.mark.parametrize("labels", [LABELS, np.searchsorted(["high", "low", "middle"], LABELS) * 2.0])
def test_classes_are_those_of_the_largest_one_hot_mean(labels):
    found = GaussianProcessClassifier(NETWORK).fit(X, labels)
    names, which = np.unique(labels, return_inverse=True)
    means = mf.GaussianProcess(NETWORK, noise=0.01).posterior(X, np.eye(3)[which] - 1 / 3).mean(Z).numpy()
    assert np.array_equal(found.classes_, names)
    assert np.array_equal(found.predict(Z), names[means.argmax(1)])
    assert np.array_equal(found.decision_function(Z), means)
    assert found.score(X, labels) == accuracy_score(labels, found.predict(X)) > 0.8
    two = GaussianProcessClassifier(NETWORK).fit(X, X[:, 0] > 0)
    assert np.array_equal(two.decision_function(Z) > 0, two.predict(Z))


def test_classes_at_positions_are_those_of_the_largest_mean_there():
    classes = np.where(
        X > 0.5, "high", np.where(X < -0.5, "low", "middle")
    )  # (30, 3), of which each position has its own
    found = GaussianProcessClassifier(Positions).fit(X, classes)
    names, which = np.unique(classes, return_inverse=True)
    targets = np.eye(3)[which.reshape(30, 3)] - 1 / 3
    means = mf.GaussianProcess(Positions, noise=0.01).posterior(X, targets).mean(Z).numpy()
    assert means.shape == (7, 3, 3)
    assert np.array_equal(found.predict(Z), names[means.argmax(-1)])
    assert np.array_equal(found.decision_function(Z), means)
    assert found.score(X, classes) == np.mean(found.predict(X) == classes) > 0.7
    two = GaussianProcessClassifier(Positions).fit(X, X > 0)
    assert np.array_equal(two.decision_function(Z) > 0, two.predict(Z))


@pytest.mark.parametrize("kind", [GaussianProcessRegressor, GaussianProcessClassifier])
def test_settings_are_read_and_set_by_name(kind):
    made = kind(NETWORK, noise=0.5)
    assert made.get_params(deep=False) == dict(network=NETWORK, scaling=None, noise=0.5, law="nngp", over=())
    assert made.get_params()["network__weight_std"] == 1.4
    other = mf.Network(1, "erf")
    assert made.set_params(network__depth=5, network=other, noise=0.2) is made
    assert (made.network, made.noise) == (mf.Network(5, "erf"), 0.2)
    with pytest.raises(ValueError, match=r"unknown setting: received 'nois'; known: law, network, network__activation"):
        made.set_params(nois=1.0)
    twin = clone(made)
    assert repr(twin) == repr(made)
    assert twin is not made
    assert (is_regressor(made), is_classifier(made)) == (
        kind is GaussianProcessRegressor,
        kind is GaussianProcessClassifier,
    )


def test_grids_and_pipelines_take_them():
    grid = {"gaussianprocessregressor__noise": [1e-3, 10.0], "gaussianprocessregressor__network__depth": [1, 2]}
    search = GridSearchCV(make_pipeline(StandardScaler(), GaussianProcessRegressor(NETWORK)), grid, cv=3).fit(X, Y)
    assert search.best_params_["gaussianprocessregressor__noise"] == 1e-3
    assert search.predict(Z).shape == (7, 2)
    scaled = StandardScaler().fit(X)
    alone = GaussianProcessRegressor(search.best_estimator_[-1].network, noise=1e-3).fit(scaled.transform(X), Y)
    assert np.array_equal(search.predict(Z), alone.predict(scaled.transform(Z)))
    scores = cross_val_score(GaussianProcessClassifier(NETWORK), X, LABELS, cv=3)  # each part holds every class
    assert scores.mean() > 0.5


def test_tensors_lists_and_tables_are_data():
    class Table:  # as data frames have it
        columns = ("a", "b", "c")

        def items(self):
            return ((name, X[:, i]) for i, name in enumerate(self.columns))

    right = GaussianProcessRegressor(NETWORK).fit(X, Y).predict(Z)
    for x, y in ((torch.from_numpy(X), torch.from_numpy(Y)), (X.tolist(), Y.tolist()), (Table(), Y)):
        assert np.array_equal(GaussianProcessRegressor(NETWORK).fit(x, y).predict(Z), right)
    objects = GaussianProcessClassifier(NETWORK).fit(X, np.array(LABELS, dtype=object))
    assert set(objects.predict(Z)) <= set(LABELS)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (lambda: GaussianProcessRegressor(NETWORK).predict(Z), r"this GaussianProcessRegressor knows no data yet: call fit\(x, y\) first"),
        (lambda: GaussianProcessRegressor(NETWORK).fit(X, Y).predict(Z, True, True), "return_std and return_cov exclude each other"),
        (lambda: GaussianProcessRegressor(NETWORK).fit(X, Y).score(X, Y[:, :1]), r"y must have shape \(30, 2\), as the predictions"),
        (lambda: GaussianProcessRegressor(NETWORK).fit(X, Y).score(X, 0 * Y), "y does not vary in output 0"),
        (lambda: GaussianProcessRegressor(NETWORK, noise=-1).fit(X, Y), "noise must be non-negative"),
        (lambda: GaussianProcessClassifier(NETWORK).fit(X, Y), "y must be one class for each sample.* of one-hot rows give y.argmax"),
        (lambda: GaussianProcessClassifier(NETWORK).fit(X, X > 0), r"y must be one class for each sample, whole.*of shape \(30, 3\)"),
        (lambda: GaussianProcessClassifier(Positions).fit(X, LABELS), r"one class for each sample and position, \(P, 3\), whole"),
        (lambda: GaussianProcessClassifier(Positions).fit(X, X > 0).score(Z, LABELS[:7]), r"y must have shape \(7, 3\), as the pred"),
        (lambda: GaussianProcessClassifier(NETWORK).fit(X, Y[:, 0]), "for numbers take GaussianProcessRegressor"),
        (lambda: GaussianProcessClassifier(NETWORK).fit(X, np.ones(30)), "y must hold two classes or more: received 1"),
        (lambda: GaussianProcessClassifier(NETWORK).fit(X, LABELS).score(Z, LABELS), "x and y differ in .*: received 7 and 30"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(asked, words):
    with pytest.raises(ValueError, match=words):
        asked()
