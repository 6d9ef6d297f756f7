"""The demos, a surface beside the command line: they teach pocket its examples and show the pictures."""

__all__: list[str] = []
