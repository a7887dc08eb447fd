r"""
Deep networks, and a certificate for their limit
================================================

With several hidden layers the limit is harder to find: each layer learns from what the others do at the same time. This lesson solves it,
looks into the layers, and shows how to tell a right solution from a wrong one *without knowing the right one*.
"""

# %%
# One typical neuron per layer
# ----------------------------
# In a wide layer no single neuron matters to the others; what they see of it are averages over the whole layer. There are two kinds: the
# feature kernel :math:`\Phi^l` (which images does layer :math:`l` find alike?) and the *gradient kernel* :math:`G^l` (the same table, of
# the gradients that come back to the layer). Given these averages over all training steps, every neuron of a layer has the same law, and
# averages over that law must give the averages one began with. This closed circle is called *dynamical mean-field theory* (DMFT).
#
# :class:`~solvers.CausalDMFT` finds the solution in one sweep through training time, since averages at a step only depend on earlier
# ones. ``samples`` is how many neurons stand for the law of a layer; ``groups=4`` solves it four times with other random numbers, which
# gives error bars.

import matplotlib.pyplot as plt

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, residual

data = mf.digits(classes=(0, 1), n_train=12, n_test=24)
problem = mf.Problem(
    data,
    mf.Network(depth=3, activation="tanh"),  # three hidden layers
    mf.mean_field(gamma0=1.0),
    mf.Training(learning_rate=0.2, steps=40),
)
limit = CausalDMFT(samples=2048, groups=4)(problem)
print(f"loss at the end {limit.loss[-1]:.5f} ± {limit.standard_errors['loss'][-1]:.5f}")
print(f"test loss       {limit.test_loss[-1]:.5f} ± {limit.standard_errors['test_loss'][-1]:.5f}")

# %%
# What each layer learns
# ----------------------
# The kernels of all layers, before and after training, images sorted by class:

fig, axes = plt.subplots(3, 2, figsize=(6.4, 8.4), layout="constrained")
for layer, panels in enumerate(axes, start=1):
    mf.plot.kernels(limit, f"Phi{layer}", ax=panels)

for layer in (1, 2, 3):
    before, after = (mf.alignment(limit.kernels[f"Phi{layer}"].at(step), data.y) for step in (0, -1))
    print(f"layer {layer}: alignment with the classes {before:.2f} -> {after:.2f}")

# %%
# The deeper the layer, the more it knows of the classes in the end.
#
# Do real networks agree?
# -----------------------
# Networks of three widths, eight random starts each:

nets = [net for width in (64, 256, 1024) for net in FiniteWidth(width, dtype="float32").ensemble(problem, seeds=8)]
compared = ("f", "Phi1", "Phi3", "tangent_kernel")
report = mf.deviation(nets, limit, names=compared)
mf.plot.deviation(report, compared)
print(report)

# %%
# In the table *deviation* is how far single networks are from the limit, relative to it, *std* how far they are from each other, and
# *|bias|* how far their mean is from the limit. The mean over eight networks is off by chance, too: by the *floor*, and a bias below it is
# not seen. The line under each block has the power of the width that fits, with its 95 % interval.
#
# Outputs and the kernels of all layers approach the limit like :math:`N^{-1/2}`, as they did with one layer.
#
# The certificate
# ---------------
# Training networks is one way to check a limit, but a slow one. There is a better one: a solution must reproduce itself.
# :func:`~solvers.residual` takes its kernels, draws fresh neurons in them, and averages anew. Nothing may change by more than the noise
# of the draws (which is called *floor* here, too):

solution = CausalDMFT(samples=2048)(problem)
print(residual(solution))

# %%
# Every ratio is within what noise gives: the solution is *consistent*. Can the certificate fail? Spoil the solution on purpose:
# ``tolerance`` says how small a part of a layer's activity may be dropped to save time, and 0.3 drops far too much.

spoiled = CausalDMFT(samples=2048, tolerance=0.3)(problem)
print(f"loss at the end {spoiled.loss[-1]:.5f}, which looks harmless\n")
print(residual(spoiled))

# %%
# The loss alone would not have told. The certificate does.
#
# **Try it yourself.** Set ``depth=5``, or ``mf.Network(depth=3, activation="relu", residual=1.0)``, for which the certificate is not
# there and networks must serve. More samples make the floor smaller: the test becomes sharper.
