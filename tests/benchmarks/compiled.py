"""torch.compile as a peer, watched: a call that did not run the compiled graph is seen, a missing compiler is a sentence."""

import time
from collections.abc import Callable
from typing import Any

import torch


def _inductor(graph: Any, inputs: Any) -> Any:
    from torch._inductor.compile_fx import compile_fx  # some versions of torch start processes when it is imported

    return compile_fx(graph, inputs)


class Compiled:
    """The function compiled whole; `state` says in words why it is of no use, or is empty. compiler: of a graph and its inputs

    A graph break or a recompilation beyond the limit raises in the first call, which `first` turns into words. Falling back to eager is
    silent (TORCHDYNAMO_DISABLE, a stance, suppressed errors): each call must have run the one graph, once.
    """

    def __init__(self, function: Callable[..., Any], compiler: Callable[..., Any] = _inductor) -> None:
        torch._dynamo.reset()  # graphs of earlier functions count towards the limit
        self.state, self.graphs_run = "", 0
        self._compiler = compiler
        self._function = torch.compile(function, backend=self._counted, fullgraph=True, dynamic=False)

    def _counted(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        run = self._compiler(graph, inputs)

        def counted(*tensors: Any) -> Any:
            self.graphs_run += 1
            return run(*tensors)

        return counted

    def first(self, call: Callable[[], Any]) -> float:
        """Seconds (wall) of a first call, which compiles or takes the result of an earlier compilation from inductor's cache on disk"""
        start = time.perf_counter()
        try:
            call()
        except Exception as error:  # no compiler, a graph break, too many recompilations
            cause = getattr(error, "inner_exception", error)  # where the backend failed
            words = str(cause).strip().splitlines()
            self.state = f"not compiled: {type(cause).__name__}: {words[0][:100] if words else ''}"
        return time.perf_counter() - start

    def __call__(self, *arguments: Any) -> Any:
        before = self.graphs_run
        result = self._function(*arguments)
        if self.graphs_run != before + 1:
            self.state = "fell back to eager"
        return result
