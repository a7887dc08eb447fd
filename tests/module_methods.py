"""Engines for modules, real networks and the limit, by what tests change of them."""

import torch

import meanfield as mf
from meanfield.network.architecture import architecture
from meanfield.problem.losses import loss as loss_called
from solvers.dmft.module_limit import ModuleLimit
from solvers.dmft.neurons import Population
from solvers.finite.modules import ModuleNetworks
from solvers.running.inputs import EVERYWHERE
from solvers.running.integrator import weighted
from solvers.running.sharding import Shard

SINGLE, DOUBLE = torch.empty(0), torch.empty(0, dtype=torch.float64)
SQUARED = loss_called("squared")


def real(build, data, width=16, scaling=None, seeds=(0, 1), loss=SQUARED, like=DOUBLE):
    return ModuleNetworks(architecture(build), scaling or mf.mean_field(1.3), width, seeds, data, loss, like)


def limit(build, data, gamma0=1.5, loss=SQUARED, like=DOUBLE, samples=512, seed=0, draws="sobol", tolerance=1e-7):
    population = Population(samples, seed, draws, like, Shard(samples))
    return ModuleLimit(architecture(build), mf.mean_field(gamma0), data, loss, population, (tolerance, tolerance))


def onwards(method, eta, steps):
    state = method.initial_state()
    for _ in range(steps):
        state = weighted((1.0, eta), (state, method.backward(method.forward(state, EVERYWHERE, True))))
    return state


def off(found, right):
    return float((found - right).norm() / right.norm())
