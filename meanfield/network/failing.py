"""What to say of a forward that fails: by the function of torch that failed and the tensors it was given."""

from __future__ import annotations

from torch import Tensor, nn

from meanfield.network.calls import Failed

_TABLES = ("embedding", "__getitem__", "index_select", "gather", "take_along_dim", "take")


def failed(
    net: object, x: Tensor, error: Exception, where: Failed | None, what: str = "the network's forward fails"
) -> str:
    """The message for inputs x; where: the function of torch that failed, None for others"""
    why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    remedy = _remedy(net, x, where) if where is not None else ""
    return f"{what} for x of shape {tuple(x.shape)} and {x.dtype} ({why})" + f"; {remedy}" * bool(remedy)


def _remedy(net: object, x: Tensor, where: Failed) -> str:
    names: dict[int, str] = {}
    if isinstance(net, nn.Module):
        names = {id(t): name for own in (net.named_parameters(), net.named_buffers()) for name, t in own}
    real = [t for t in where.given if t.is_floating_point()]
    whole = [t for t in where.given if not t.is_floating_point() and not t.is_complex()]
    kinds = sorted({str(t.dtype) for t in real})
    if len(kinds) > 1:
        own = next((names[id(t)] for t in real if id(t) in names), "layer.weight")
        return (
            f"{where.name} meets {' and '.join(kinds)}: x and the parameters are of float64 or float32, as the solver says. Write "
            f"x.to(self.{own}.dtype) rather than x.float(), x.double() or x.half(), and keep constants with self.register_buffer, which "
            "go along"
        )
    if where.name in _TABLES and real and whole:
        return _beyond(x, real[0], whole[0], names)
    if where.name == "embedding" and not whole:
        return "give tokens as integers, x.long()"
    if real and whole and not x.is_floating_point():
        return "its tokens are integers; give real numbers, x.double(), if it takes none"
    given = [f"{_name(t, names):s}{tuple(t.shape)}" for t in where.given]
    return f"{where.name} was given {' and '.join(given)}"


def _name(tensor: Tensor, names: dict[int, str]) -> str:
    """Of a parameter, or of that of which it is a part"""
    base = tensor._base
    if id(tensor) in names:
        return f"{names[id(tensor)]!r} "
    return f"a part of {names[id(base)]!r} " if base is not None and id(base) in names else ""


def _beyond(x: Tensor, table: Tensor, rows: Tensor, names: dict[int, str]) -> str:
    """Of rows that a table does not have"""
    least, most, name = int(rows.min()), int(rows.max()), names.get(id(table), "")
    told = f"the table {name!r}" if name else "a table"
    own = not x.is_floating_point() and rows.numel() > 1 and bool((rows.unique()[:, None] == x.flatten()).any(1).all())
    if own and tuple(rows.shape) == tuple(x.shape):
        if least < 0:
            return f"its tokens go down to {least}, and are counted from 0: give x with the smallest as 0"
        return f"its tokens go up to {most}, and {told} has {len(table)} rows: give it {most + 1}"
    length = f"; x has {x.shape[1]} positions" if x.ndim > 1 else ""
    return f"{told} has {len(table)} rows and is asked for row {most if most >= len(table) else least}{length}: make it as long"
