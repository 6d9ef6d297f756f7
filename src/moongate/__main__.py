"""Run the command line: `python -m moongate`, or the script `moongate`."""

import os
import sys

__all__ = ["main"]

WAITING = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
"""Variables by which a user says how threads wait."""
SPINS = "1000"
"""How often a thread looks whether it may go on before it sleeps. By default it computes for milliseconds, which beside
other programs takes several times as long as the work (docs/performance.md)."""


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback, also while it is still being imported.

    Threads that wait for one another soon sleep, unless the user says otherwise. PyTorch reads how long they compute
    meanwhile when it is imported.
    """
    if not WAITING & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        from moongate import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
