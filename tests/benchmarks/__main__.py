"""Measure speed and memory: `python -m tests.benchmarks [name ..]`; no name runs all.

Each benchmark prints a markdown table; with --json the figures go to a file. Ratios are taken within one run, so that a busy
machine slows both sides.
"""

import argparse
import inspect
import json
import time
from pathlib import Path

import torch

import tests.benchmarks
from meanfield import checks
from tests.running import gathered, machine


def main() -> None:
    benchmarks = gathered(tests.benchmarks, "BENCHMARKS")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(benchmarks)}")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="for the benchmarks that take one")
    asked = parser.parse_args()
    names = asked.names or list(benchmarks)
    chosen = [checks.lookup("benchmark", name, benchmarks) for name in names]
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here; leave it out, or install a CUDA build of torch")
    results = {"machine": machine(), "device": asked.device, "benchmarks": {}}
    print("; ".join(f"{key}: {value}" for key, value in results["machine"].items()))
    for name, benchmark in zip(names, chosen, strict=True):
        takes = "device" in inspect.signature(benchmark).parameters
        if asked.device == "cuda" and not takes:
            print(f"\n## {name}: runs on the CPU only, left out", flush=True)
            continue
        print(f"\n## {name}: {benchmark.__doc__}\n", flush=True)
        start = time.perf_counter()
        results["benchmarks"][name] = benchmark(asked.device) if takes else benchmark()
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
        if asked.json:  # after each, so that a stop loses nothing
            asked.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
