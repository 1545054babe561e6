"""`python -m tests.bulk.kills --kills 1000 --seed 7`: prints what was done, and the first fault."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.bulk.kills.harness import Installation, Run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bulk.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()

    def say(words: str) -> None:
        sys.stderr.write(f"{words}\n")

    with (
        tempfile.TemporaryDirectory() as folder,
        Installation(Path(folder)) as installation,
    ):
        run = Run(installation, seed=chosen.seed, say=say)
        run.until(chosen.kills)
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
