"""Print the tables of docs/accuracy.md: `python -m tests.accuracy [name ..]`; no name prints all."""

import argparse
import platform
import time

import numpy as np
import torch

from meanfield import checks
from tests.accuracy.claims import CLAIMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(CLAIMS)}")
    names = parser.parse_args().names or list(CLAIMS)
    print(
        f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads"
    )
    for name in names:
        claim = checks.lookup("claim", name, CLAIMS)
        start = time.perf_counter()
        print(f"\n## {name}: {claim.__doc__}", flush=True)
        claim()
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
