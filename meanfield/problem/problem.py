"""What is asked: Problem = Dataset + Network + Scaling + Training + Loss."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from meanfield.checking.arguments import checked
from meanfield.network.perceptron import Network
from meanfield.problem.dataset import Dataset
from meanfield.problem.losses import Loss, loss
from meanfield.problem.training import Training
from meanfield.scaling.scaling import Scaling, mean_field


@checked
@dataclass(frozen=True)
class Problem:
    """One learning problem; every solver takes it and answers with a Solution on its time grid."""

    data: Dataset
    """Samples to train on, and others to watch"""
    network: Network = field(default_factory=Network)
    """Fully connected layers, whose width goes to infinity (equation 1)"""
    scaling: Scaling = field(default_factory=mean_field)
    """How the output and the learning rates depend on the width"""
    training: Training = field(default_factory=Training)
    """On the mean loss, recorded at times that are the same for every solver (equation 2)"""
    loss: Loss | str = "squared"
    """Averaged over the training samples"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", loss(self.loss))
        self.training.batches(self.data.samples)
        self.loss_function.fits(self.data.y, *([] if self.data.y_test is None else [self.data.y_test]))

    @property
    def loss_function(self) -> Loss:
        return loss(self.loss)

    def with_steps(self, steps: int) -> Problem:
        return replace(self, training=replace(self.training, steps=steps))
