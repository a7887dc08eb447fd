r"""
What a limit is, and how networks approach it
=============================================

Train the same small network twice, from two random starts, and you get two different functions. Make it wider, and the two functions come
closer. Make it wider still, and they can hardly be told apart: there is *one* function that all wide networks approach, the
**infinite-width limit**. This lesson shows it happen, first with a plain PyTorch loop, then with the limit itself, solved without any
network.
"""

# %%
# A network whose width may grow
# ------------------------------
# Take a network with one hidden layer of :math:`N` neurons,
#
# .. math:: f(x) = \frac{1}{N} \sum_{r=1}^{N} a_r \tanh\!\left(\frac{w_r \cdot x}{\sqrt{D}}\right),
#
# where :math:`D` is the number of inputs. All numbers :math:`a_r` and :math:`w_r` start as independent draws from N(0, 1). Two things
# differ from what ``nn.Linear`` does by default:
#
# - the output is divided by :math:`N`, so it is an *average over neurons*. Averages are what settles down when there are many of
#   something;
# - each neuron then has a share of only :math:`1/N` in the output, and its gradient is as small. To let it move nevertheless, the learning
#   rate is multiplied by :math:`N`.
#
# This is the *mean-field scaling* (also known as *muP*). Here it is as an ordinary training loop, on 16 images of the digits 0 and 1 with
# targets +1 and -1:

import matplotlib.pyplot as plt
import torch

import meanfield as mf

data = mf.digits(classes=(0, 1), n_train=16, n_test=32)
print("images", tuple(data.x.shape), "targets", tuple(data.y.shape))


def train(width, seed, learning_rate=0.2, steps=50):
    """The output on every training image at every step, (steps + 1, 16)"""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(width, generator=generator, dtype=torch.float64).requires_grad_()
    w = torch.randn(width, 64, generator=generator, dtype=torch.float64).requires_grad_()
    outputs = []
    for _ in range(steps + 1):
        f = torch.tanh(data.x @ w.T / 64**0.5) @ a / width
        outputs.append(f.detach())
        loss = (0.5 * (f - data.y[:, 0]) ** 2).mean()
        gradients = torch.autograd.grad(loss, (a, w))
        with torch.no_grad():
            for parameter, gradient in zip((a, w), gradients, strict=True):
                parameter -= learning_rate * width * gradient  # times the width: see above
    return torch.stack(outputs)


fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
for panel, width in zip(axes, (16, 128, 1024), strict=True):
    for seed in range(8):
        panel.plot(train(width, seed)[:, 0], color="C0", alpha=0.6)
    panel.set(title=f"{width} neurons, 8 random starts", xlabel="step of training")
axes[0].set_ylabel("output on one training image")

# %%
# Each curve is one network, followed on one image through training. With 16 neurons the eight networks go their own ways; with 1024 they
# walk almost together. What do they walk along?

# %%
# The limit
# ---------
# As :math:`N` grows, the sum over neurons becomes an average over a *cloud* of infinitely many. Instead of single neurons one follows the
# cloud: how many neurons have which weights. It moves by gradient descent, too: each neuron of the cloud feels the average output, and
# that average no longer depends on luck. In this library you say what you want to know as a :class:`~meanfield.Problem`, and a *solver*
# finds the answer. The solver for this case is called :class:`~solvers.WassersteinFlow`:

from solvers import FiniteWidth, WassersteinFlow

problem = mf.Problem(
    data=data,
    network=mf.Network(depth=1, activation="tanh"),
    scaling=mf.mean_field(gamma0=1.0),
    training=mf.Training(learning_rate=0.2, steps=50),
    loss="squared",
)
limit = WassersteinFlow(particles=4096)(problem)
print(limit)

# %%
# The result is a :class:`~meanfield.Solution`. ``limit.f`` has the outputs at every step, on every image. Laid over the networks from the
# loop above, which knows nothing of this library:

fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
for panel, width in zip(axes, (16, 128, 1024), strict=True):
    for seed in range(8):
        panel.plot(train(width, seed)[:, 0], color="C0", alpha=0.4)
    panel.plot(limit.f[:, 0, 0], color="black", linewidth=2, label="the limit")
    panel.set(title=f"{width} neurons", xlabel="step of training")
axes[0].set_ylabel("output on one training image")
axes[0].legend()

# %%
# The limit is not a fit through the curves: no network was trained to find it. It is computed from the data, the activation and the
# learning rate alone.

# %%
# How fast do they approach it?
# -----------------------------
# Averages over :math:`N` random things are off by about :math:`1/\sqrt N`. So four times the width should halve the distance. To see
# whether it does, train many networks of several widths; :class:`~solvers.FiniteWidth` does what the loop above did, for all seeds at
# once:

nets = [net for width in (32, 64, 128, 256, 512) for net in FiniteWidth(width).ensemble(problem, seeds=12)]
limits = [WassersteinFlow(particles=4096, seed=seed)(problem) for seed in (0, 1)]  # two, to know the limit's own error
report = mf.deviation(nets, limits, names=("f", "loss"))
print(report)

# %%
# A row is what one width shows. *deviation* is the typical distance of one network from the limit, relative to the limit's size; *std*
# the scatter of networks among each other; *|bias|* how far their average is from the limit, if it can be told from noise. The last line
# of each block has the power of the width, with an interval that holds the true one 95 times out of 100. The picture of it:

mf.plot.deviation(report)

# %%
# The lines are straight on logarithmic axes and fall like :math:`N^{-1/2}`.
#
# Why does it help?
# -----------------
# - The limit has *no width and no seed*. It is what an experiment with wide networks is about, without the noise.
# - It is *cheap*: here it takes a second, as much as a few networks of moderate width.
# - What you find for it holds for all wide networks, up to :math:`1/\sqrt N`, and the report says how far off yours is.
#
# **Try it yourself.** Change the activation in ``mf.Network`` to ``"relu"``, or ``loss`` to ``"logistic"``. In the loop, divide by
# ``width**0.5`` instead of ``width`` and leave out the factor in the learning rate: the next lesson tells what you have made.
