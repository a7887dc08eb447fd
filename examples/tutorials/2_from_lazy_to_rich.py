r"""
Feature learning: from lazy to rich
===================================

Deep learning works because hidden layers *learn features*: they come to find those inputs alike that belong together. Surprisingly, a wide
network can also fit its data without learning any features. One number, called :math:`\gamma_0` (*richness*), leads from one case to the
other. This lesson makes both visible. It needs the :doc:`first one <1_what_a_limit_is>`.
"""

# %%
# What a layer finds alike
# ------------------------
# A hidden layer turns an image into a vector of :math:`N` activations. Two images are alike *for the layer* if their vectors are. The
# *feature kernel* is the table of all these comparisons,
#
# .. math:: \Phi_{\mu\nu} = \frac{1}{N} \sum_{r=1}^{N} \phi(h_r(x_\mu))\, \phi(h_r(x_\nu)),
#
# one row and one column for each image, :math:`h_r` being what enters neuron :math:`r`. It is an average over neurons, so it has a limit,
# too.
#
# How much should features move?
# ------------------------------
# Divide the output by :math:`\gamma_0 N` instead of :math:`N`. With a small :math:`\gamma_0` the output is a large multiple of what the
# neurons do: a tiny change of each suffices to fit the data, and features stay as they were drawn. With a large one, neurons must move
# far. (The learning rate is multiplied by :math:`\gamma_0^2`, so that all of them learn at about the same speed in the beginning.)

import matplotlib.pyplot as plt

import meanfield as mf
from solvers import FiniteWidth, TangentKernelLimit, WassersteinFlow

data = mf.digits(classes=(3, 8), n_train=32, n_test=128)
network, training = mf.Network(depth=1, activation="tanh"), mf.Training(learning_rate=0.2, steps=80)
solve = WassersteinFlow(particles=8192)
richness = (0.03, 0.1, 0.3, 1.0, 3.0)
limits = {g: solve(mf.Problem(data, network, mf.mean_field(gamma0=g), training)) for g in richness}

axes = mf.plot.kernels([limits[0.03], limits[3.0]], scale="all")
for panel, title in zip(axes, ("0.03, start", "0.03, end", "3, start", "3, end"), strict=True):
    panel.set_title(rf"$\gamma_0$ = {title}")

# %%
# Images are sorted by class, and colours say how alike two of them are. Before training, both networks find all images about equally
# alike. After training the lazy one (above) has hardly changed its mind, while the rich one (below) sees two blocks: images of a digit
# are alike (red), those of different digits opposite (blue). Yet the loss of both falls:

fig, panel = plt.subplots(figsize=(5.4, 3.4), layout="constrained")
for g, solution in limits.items():
    panel.semilogy(solution.times, solution.loss, label=rf"$\gamma_0$ = {g:g}")
panel.set(xlabel="training time (step times learning rate)", ylabel="training loss")
panel.legend()

# %%
# In numbers
# ----------
# :func:`~meanfield.movement` is the relative change of a kernel, :func:`~meanfield.alignment` how much of it points at the targets (1: it
# knows nothing but the classes).

print(f"{'gamma0':>7}{'movement':>10}{'alignment':>11}{'test loss':>11}")
for g, solution in limits.items():
    aligned = mf.alignment(solution.kernels["Phi1"].at(-1), data.y)
    print(f"{g:7}{mf.movement(solution, 'Phi1'):10.4f}{aligned:11.3f}{solution.test_loss[-1]:11.4f}")

# %%
# While networks are lazy, ten times the richness moves features about a hundred times as far (:math:`\gamma_0^2`); around :math:`\gamma_0
# = 1` they move by their own size. Whether features help on new images is a question for each data set: compare the last column.

# %%
# The lazy end has a formula
# --------------------------
# If features stand still, the network is linear in its small changes, and training is ordinary regression with a fixed kernel, the
# *neural tangent kernel* (NTK). It says how a step of gradient descent on one image moves the output on another. The solver
# :class:`~solvers.TangentKernelLimit` uses nothing else. Is it really where the curves go as :math:`\gamma_0 \to 0`?

lazy = TangentKernelLimit()(mf.Problem(data, network, mf.mean_field(gamma0=0.03), training))
for g, solution in limits.items():
    distance = (solution.f - lazy.f).norm() / lazy.f.norm()
    print(f"gamma0 = {g:5}: outputs differ from the tangent-kernel limit by {distance:.2%}")

# %%
# It is, and again in proportion to :math:`\gamma_0^2`, until at the lazy end the error of sampling 8192 particles shows (with four times as
# many the distance at 0.03 is 0.12 %).
#
# Two scalings, two limits
# ------------------------
# What does the width do by itself? In the *NTK scaling* (divide the output by :math:`\sqrt N`, leave the learning rate alone) a wider
# network is a lazier one: it is like the mean-field scaling with a richness of :math:`1/\sqrt N`. In the mean-field scaling the richness
# stays. Both can be set up so that they are *the same network* at one width, here 64; from there they part:

reference = 64
scalings = mf.coinciding(mf.mean_field(1.0), reference)
print(f"{'width':>6}{'mean field':>12}{'NTK':>10}   (movement of the tangent kernel in training)")
for width in (64, 256, 1024):
    row = []
    for name in ("mean_field", "ntk"):
        problem = mf.Problem(data, network, scalings[name], training)
        row.append(float(mf.movement(FiniteWidth(width, seed=0)(problem), "tangent_kernel")))
    print(f"{width:6}{row[0]:12.4f}{row[1]:10.4f}")

# %%
# Same network at width 64; at 1024 the one still learns features and the other hardly does. "Infinitely wide networks do not learn
# features" is true of one scaling and false of another.
#
# **Try it yourself.** Take fewer training images, or ``gaussian_mixture`` in place of the digits: is rich better there?
# :func:`~meanfield.classify` says of any scaling what its limit is: ``print(mf.classify(mf.ntk()))``.
