"""Print the tables of docs/accuracy.md: `python -m tests.accuracy [name ..]`; no name prints all."""

import argparse
import time

import tests.accuracy
from meanfield.checking import checks
from tests.running import gathered, machine


def main() -> None:
    claims = gathered(tests.accuracy, "CLAIMS")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(claims)}")
    names = parser.parse_args().names or list(claims)
    chosen = [checks.lookup("claim", name, claims) for name in names]
    print("; ".join(f"{key}: {value}" for key, value in machine().items()))
    for name, claim in zip(names, chosen, strict=True):
        start = time.perf_counter()
        print(f"\n## {name}: {claim.__doc__}", flush=True)
        claim()
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
