"""Run the command line: `python -m moongate`."""

from moongate.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
