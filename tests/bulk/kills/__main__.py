"""`python -m tests.bulk.kills --kills 1000 --seed 7`: prints what it did, and the first fault."""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.bulk.kills.harness import Installation, Run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bulk.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=1, help="stop after this many")
    parser.add_argument("--verbose", action="store_true", help="print each command")
    chosen = parser.parse_args()
    # (So that its server is stopped, too.)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def say(words: str) -> None:
        sys.stderr.write(f"{words}\n")

    with (
        tempfile.TemporaryDirectory() as folder,
        Installation(Path(folder)) as installation,
    ):
        run = Run(
            installation,
            seed=chosen.seed,
            say=say,
            tells_all=chosen.verbose,
            most_faults=chosen.faults,
        )
        run.until(chosen.kills)
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
