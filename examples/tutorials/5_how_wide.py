r"""
How wide must my network be?
============================

You know the limit; now you want a real network that is within, say, two per cent of it. Must you train networks of all widths to find out
which is wide enough? No: how far a network will be from the limit can be computed before any is trained.
"""

# %%
# Two ways to be off
# ------------------
# A network of width :math:`N` differs from the limit in two ways:
#
# - **variance**: another random start gives another network. Its square falls like :math:`1/N`, and averaging over :math:`E` networks
#   divides it by :math:`E`;
# - **bias**: even the average over *all* networks of that width is not the limit. It falls like :math:`1/N` (its square like
#   :math:`1/N^2`), and averaging does not help.
#
# Both have a first coefficient that belongs to the limit, and can be found there:

import matplotlib.pyplot as plt

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, predicted_bias, predicted_variance, width_for

problem = mf.Problem(
    mf.digits(classes=(0, 1), n_train=8, n_test=16),
    mf.Network(depth=2, activation="tanh"),
    mf.mean_field(gamma0=1.0),
    mf.Training(learning_rate=0.2, steps=20),
)
variance = predicted_variance(problem, particles=512)
print(variance)

# %%
# The rows say: the variance of an output at the last step is the number under *mean*, divided by the width. The lines below tell which
# layer it comes from. No network was trained for it; it is the derivative of the limit with respect to the weight of each neuron. The
# bias:

bias = predicted_bias(problem, width=64, draws=100)
print(bias)

# %%
# The answer
# ----------

for networks in (1, 4, 16):
    print(width_for(problem, error=0.02, ensemble=networks, variance=variance, bias=bias))

# %%
# One network must be wide. Four networks, averaged, may be a quarter as wide, since at this accuracy the variance is what counts.
# (Training costs grow like the square of the width, so four narrow ones are the cheaper choice here.) The whole curve:

mf.plot.width_for(width_for(problem, error=0.02, variance=variance, bias=bias))

# %%
# Is it true?
# -----------
# Train networks of widths far below, and see whether they are as far from the limit as was predicted:

limit = CausalDMFT(samples=4096, groups=4)(problem)
nets = [net for width in (32, 64, 128, 256) for net in FiniteWidth(width, dtype="float32").ensemble(problem, seeds=32)]
report = mf.deviation(nets, limit, names=("f",), predicted=variance, bias=bias)
print(report)
mf.plot.predictions(report)

# %%
# *Measured over predicted* is 1 within one or two of its errors for the variance at all widths. The bias is small here: it takes many
# more networks to see it, and its prediction is what tells you so.
#
# What is it worth for the loss?
# ------------------------------
# Being off costs something: the test loss of a network is on average above that of the limit. :func:`~meanfield.ensemble_loss` says by
# how much, and how much of that an average over 4 or 16 networks removes:

found = mf.ensemble_loss(limit, variance, bias, nets, ensembles=(1, 4, 16), test=True)
print(found)
fig, panel = plt.subplots(figsize=(6.0, 4.0), layout="constrained")
mf.plot.ensemble_loss(found, ax=panel)

# %%
# **Try it yourself.** Set ``error=0.1``: at the small widths that this takes the bias matters, and sixteen networks no longer do with a
# sixteenth of the width.
