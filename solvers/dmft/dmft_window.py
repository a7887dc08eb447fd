"""The single-neuron equations over the whole training window and their averages: the map whose fixed point is the limit (equation 31).

All times t = 0..T are solved at once. Rows of a field are time-major: (t, point) for u, h, phi and (t, point, output) for r, z, g.
Given the kernels of every layer, each layer is a single neuron in Gaussian fields with memory,

    h^l = u^l + C^l g^l,      C^l(t,s) = A^{l-1}(t,s) + (k omega^2 / P) Phi^{l-1}(t,s) Delta(s)    s < t
    z^l = r^l + D^l phi(h^l), D^l(t,s) = B^l(t,s) [s <= t] + (k omega^2 / P) G^{l+1}(t,s) Delta(s) [s < t],    g = phi'(h) z
    u^l ~ GP(0, omega^2 Phi^{l-1}),   r^l ~ GP(0, omega^2 G^{l+1}),   k = eta rate_w

with Phi^0 = x x^T / D, A^0 = B^L = 0, and for the readout G^{L+1} = 1 (between equal outputs) and k = eta rate_a, so that z^L = omega a(t).
Its averages are the new kernels Phi = <phi phi>, G = <g g>, A = omega^2 <d phi / d r>, B = omega^2 <d g / d u> and f = gain <z^L phi^L>.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.network.keys import Key
from meanfield.problem.problem import Problem
from meanfield.problem.training import Training
from meanfield.solution.two_time import tangent_of
from solvers.dmft.basis import orthonormal
from solvers.dmft.neurons import sobol_neurons

Kernels = dict[str, Tensor]  # by key, A and B by the layer below; and "f"
_CUT = 1e-4  # directions of a covariance below this fraction of its largest variance have no measurable response


class Window:
    """One application of the map over the times 0..T, with the same random numbers each time; training points first."""

    def __init__(self, problem: Problem, steps: int, samples: int, seed: int, dtype: str = "float64") -> None:
        self.problem = problem
        network, data = problem.perceptron, problem.data
        self.act = network.nonlinearity
        self.depth = network.depth
        self.exact = network.is_linear
        self.kind = torch.float64 if self.exact else checks.DTYPES[dtype]
        self.times = 1 + steps
        self.responses = [Key(kind, l) for kind in "AB" for l in range(1, self.depth)]
        self.gain, rate_a, rate_w = problem.in_plane.measure_limit()
        self.p = data.samples
        self.c = data.outputs
        self.power = network.weight_std**2
        per_sample = problem.training.learning_rate * self.power / self.p
        self.step_w = per_sample * rate_w  # k omega^2 / P
        self.step_a = per_sample * rate_a
        x = data.all_x / math.sqrt(data.inputs)
        self.points = len(x)
        self.k_x = x @ x.T
        self.phi0 = self._constant(self.k_x)
        self.g_last = self._constant(torch.eye(self.c, dtype=torch.float64).repeat(self.p, self.p))
        times = torch.arange(self.times)
        of_h, of_g, of_phi = (times.repeat_interleave(rows) for rows in (self.points, self.p * self.c, self.p))
        self.late_c = of_h[:, None] > of_g  # s < t
        self.late_d = of_g[:, None] > of_phi
        self.causal_b = of_g[:, None] >= of_phi  # s <= t
        self.train = (torch.arange(self.points) < self.p).repeat(self.times)  # among the rows of h
        training = problem.training
        self.weights = 1.0 if training.batch_size is None and not training.changing else self._weights(training)
        if not self.exact:
            self.draws = [self._draw(l, samples, 1000 * seed + l) for l in range(self.depth)]

    def _weights(self, training: Training) -> Tensor:
        """(T P, 1) of each sample in the mean of each step, P / batch_size in its batch, times the step's rate over the learning rate;
        nothing comes after the last step
        """
        weights = torch.zeros(self.times, self.p, dtype=torch.float64)
        rates = (training.rates / training.learning_rate).tolist()
        for row, batch, rate in zip(weights[:-1], training.batches(self.p), rates, strict=False):
            if batch is None:
                row[:] = rate
            else:
                row[batch] = rate * self.p / len(batch)
        return weights.reshape(-1, 1)

    def _constant(self, kernel: Tensor) -> Tensor:
        """The two-time kernel that is `kernel` at all pairs of times"""
        return kernel.repeat(self.times, self.times)

    def _draw(self, l: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
        """White noise (rows of u, S) and (rows of r, S) of layer l, exactly white also together.

        Sobol's first coordinates become the slowest modes in time (cosines), along the principal directions of the inputs: there the
        variance is. u^1 and r^L = omega a(0) do not depend on time.
        """
        first, last, t = l == 0, l == self.depth - 1, self.times
        rows = [
            (self.points if k == 0 or not first else 0, (1 if last else self.p) * self.c if k == 0 or not last else 0)
            for k in range(t)
        ]
        total = sum(sum(pair) for pair in rows)
        e = sobol_neurons(samples, seed, torch.float64, "cpu").fresh(total)
        pieces = orthonormal(e, e[:0]).split([n for pair in rows for n in pair])
        u, r = torch.cat(pieces[::2]), torch.cat(pieces[1::2])
        directions = torch.linalg.eigh(self.k_x)[1].flip(1)
        if not first:
            u = _slow_modes(t, directions) @ u
        if not last:
            directions = torch.linalg.eigh(self.k_x[: self.p, : self.p])[1].flip(1)
            r = _slow_modes(t, torch.kron(directions.contiguous(), torch.eye(self.c, dtype=torch.float64))) @ r
        return u.to(self.kind), r.to(self.kind)

    def zeros(self) -> Kernels:
        sizes = {"Phi": (self.points, self.points), "G": (self.p * self.c,) * 2}
        sizes |= {"A": (self.points, self.p * self.c), "B": (self.p * self.c, self.p)}
        now: Kernels = {}
        for key in (*self.problem.keys("Phi", "G"), *self.responses):
            rows, columns = sizes[key.kind]
            now[key] = torch.zeros(self.times * rows, self.times * columns, dtype=torch.float64)
        return now | {"f": torch.zeros(self.times, self.points, self.c, dtype=torch.float64)}

    def beginning(self) -> Kernels:
        """The kernels of step 0, for a window of that one step."""
        now = self.zeros()
        for _ in range(2):  # up and down: then every layer knows its neighbours
            now = self.image(now, fresh=True)
        return now

    def extended(self, now: Kernels) -> Kernels:
        """Kernels of a shorter window, held constant from its end on, with f as of that constant tangent kernel."""
        old, p = len(now["f"]), self.p
        at = torch.arange(self.times).clamp(max=old - 1)
        known = (torch.arange(self.times) < old)[:, None].double()
        out = {}
        for key in (*self.problem.keys("Phi", "G"), *self.responses):  # in one order, which decides the last bits
            q = now[key]
            rows, columns = len(q) // old, q.shape[1] // old
            wide = q.reshape(old, rows, old, columns)[at][:, :, at] * (known if key in self.responses else 1)
            out[key] = wide.reshape(self.times * rows, -1)
        # training rows of the last step
        end, end_g = slice(-self.points, p - self.points or None), slice(-p * self.c, None)
        phi = [now[key][end, end] for key in self.problem.keys("Phi")]
        g = [now[key][end_g, end_g] for key in self.problem.keys("G")]
        rate, loss, y = self.problem.training.learning_rate / p, self.problem.loss_function, self.problem.data.y
        k = tangent_of(self.problem, self.problem.in_plane.measure_limit(), phi, g).reshape(p * self.c, -1)
        path = list(now["f"])
        while len(path) < self.times:
            f = path[-1].clone()
            f[:p] += rate * (k @ loss.delta(f[:p], y).flatten()).reshape(p, -1)
            path.append(f)
        return out | {"f": torch.stack(path)}

    def image(self, now: Kernels, fresh: bool = False) -> Kernels:
        """The map: kernels -> the averages over single neurons in their fields.

        fresh: go up the layers and down again, each taking what the one before has just found. The fixed point is the same, and nearer.
        """
        delta = self.problem.loss_function.delta(now["f"][:, : self.p], self.problem.data.y).flatten(0, 1)
        delta = delta * self.weights  # (T P, C)
        source = new = now
        for l in [*range(1, self.depth + 1), *(range(self.depth - 1, 0, -1) if fresh else ())]:
            phi = source[Key("Phi", l - 1)] if l > 1 else self.phi0
            g = source[Key("G", l + 1)] if l < self.depth else self.g_last
            c = self.step_w * (phi[:, self.train, None] * delta).flatten(1) * self.late_c
            d = (g.reshape(len(g), -1, self.c) * delta).sum(2) * self.late_d
            d = d * (self.step_a if l == self.depth else self.step_w)
            if l > 1:
                c = c + source[Key("A", l - 1)]
            if l < self.depth:
                d = d + source[Key("B", l)]
            averaged = self._matrices if self.exact else self._sampled
            phi, g, a, b, f = averaged(l, self.power * phi, self.power * g, c, d)
            new = new | {Key("Phi", l): phi, Key("G", l): g}
            if l < self.depth:
                new[Key("A", l)] = a
            if l > 1:
                new[Key("B", l - 1)] = b
            if l == self.depth:
                new["f"] = self.gain * f
            source = new if fresh else now
        return new

    def _matrices(self, l: int, cov_u: Tensor, cov_r: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, ...]:
        """Linear layers: h = h_u u + h_r r, z = z_u u + z_r r, so averages and responses are products of matrices."""
        del l  # all layers alike
        wide = d.new_zeros(len(d), len(c))
        wide[:, self.train] = d
        h_u = torch.linalg.inv(torch.eye(len(c), dtype=c.dtype) - c @ wide)
        h_r = h_u @ c
        z_u = wide @ h_u
        z_r = torch.eye(len(d), dtype=d.dtype) + wide @ h_r
        phi = h_u @ cov_u @ h_u.T + h_r @ cov_r @ h_r.T
        g = z_u @ cov_u @ z_u.T + z_r @ cov_r @ z_r.T
        a = self.power * h_r * self.late_c
        b = self.power * z_u[:, self.train] * self.causal_b
        z_phi = (z_u @ cov_u @ h_u.T + z_r @ cov_r @ h_r.T).reshape(self.times, -1, self.times, self.points)
        f = z_phi[:, : self.c].diagonal(dim1=0, dim2=2).permute(2, 1, 0)  # (T, points, C)
        return phi, g, a, b, f

    def _sampled(self, l: int, cov_u: Tensor, cov_r: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, ...]:
        """Nonlinear layers: S samples of u and r, marched through time; averages over them."""
        u, r = self._fields(l, cov_u, cov_r)
        phi, g, z = self._marched(u, r, c.to(self.kind), d.to(self.kind))
        samples, rows = u.shape[1], self.p * self.c
        readout = z.reshape(self.times, rows, samples)[:, : self.c]
        f = (phi.reshape(self.times, self.points, samples) @ readout.transpose(1, 2)).double() / samples
        # where there is no matrix, below the first layer and above the last, there is no response either
        a = phi[:0] if l == self.depth else self._response(phi @ r.T / samples, cov_r, self.points, rows, 0)
        cov_u = cov_u[self.train][:, self.train]
        b = g[:0] if l == 1 else self._response(g @ u[self.train].T / samples, cov_u, rows, self.p, 1)
        return (phi @ phi.T).double() / samples, (g @ g.T).double() / samples, self.power * a, self.power * b, f

    def _fields(self, l: int, cov_u: Tensor, cov_r: Tensor) -> tuple[Tensor, Tensor]:
        """Samples of u^l and r^l; u^1 and r^L = omega a(0) do not depend on time"""
        white_u, white_r = self.draws[l - 1]
        now = slice(0, self.points)
        if l == 1:
            u = (square_root(cov_u[now, now], sorted_modes=True).to(self.kind) @ white_u).repeat(self.times, 1)
        else:
            u = square_root(cov_u).to(self.kind) @ white_u
        if l == self.depth:
            a = _balanced(white_r, self.act.phi(u[now]), white_u)
            r = math.sqrt(self.power) * a.repeat(self.times * self.p, 1)
        else:
            r = square_root(cov_r).to(self.kind) @ white_r
        return u, r

    def _marched(self, u: Tensor, r: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi, g and z of the samples at all times: equations 20 and 21"""
        phi, z, g = (torch.empty_like(field) for field in (u, r, r))
        features = torch.empty_like(r[:: self.c])  # phi of the training points
        n, p, rows = self.points, self.p, self.p * self.c
        for t in range(self.times):
            at, at_g, seen = slice(t * n, (t + 1) * n), slice(t * rows, (t + 1) * rows), (t + 1) * p
            h = u[at] + c[at, : t * rows] @ g[: t * rows]
            phi[at] = self.act.phi(h)
            features[t * p : seen] = phi[at][:p]
            z[at_g] = r[at_g] + d[at_g, :seen] @ features[:seen]
            g[at_g] = self.act.dphi(h[:p]).repeat_interleave(self.c, 0) * z[at_g]
        return phi, g, z

    def _response(self, cross: Tensor, cov: Tensor, rows: int, columns: int, reach: int) -> Tensor:
        """<dF(t) / dr(s)> for s < t + reach, from the Gaussian identity <F r> = <dF/dr> cov.

        F(t) depends on the noise of these times only, so the identity holds among them, and what is found is causal. Directions of
        variance below _CUT of the largest are damped out: fields hardly have a part there, and each would bring noise 1/sqrt(S).
        """
        out = torch.zeros_like(cross, dtype=torch.float64)
        for t in range(1 - reach, self.times):
            i, past = slice(t * rows, (t + 1) * rows), slice(0, (t + reach) * columns)
            values, v = torch.linalg.eigh(cov[past, past])
            values = values.clamp(min=0)
            inverse = values / (values.square() + (_CUT * values[-1]).square() + 1e-300)
            out[i, past] = cross[i, past].double() @ v * inverse @ v.T
        return out


def _slow_modes(times: int, directions: Tensor) -> Tensor:
    """Orthogonal (times n, times n): cosines of rising frequency in time, for each frequency the directions in turn"""
    step = torch.arange(times, dtype=torch.float64)
    modes = torch.cos(math.pi / times * torch.outer(step + 0.5, step))
    return torch.kron(modes / modes.norm(dim=0), directions.contiguous())


def square_root(cov: Tensor, sorted_modes: bool = False) -> Tensor:
    """S with S S^T = cov: the symmetric root, which is continuous in cov; or its eigen-directions, the largest first"""
    values, v = torch.linalg.eigh((cov + cov.T) / 2)
    half = v * values.clamp(min=0).sqrt()
    return half.flip(1) if sorted_modes else half @ v.T


def _balanced(a: Tensor, phi: Tensor, white: Tensor) -> Tensor:
    """The readouts a (C, S) made orthogonal to the features phi of step 0, so that f(0) = 0, and still to the noise u is made of"""
    s = a.shape[1]
    rest = phi - (phi @ white.T / s) @ white
    values, v = torch.linalg.eigh((rest @ rest.T).double() / s)
    keep = values > 1e-10 * values[-1].clamp(min=1e-300)
    rest = (v[:, keep] / values[keep].sqrt()).T.to(a.dtype) @ rest
    return orthonormal(a, rest)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-30))
