"""Demos on pocket: teach one example subject (`single`) or two (`pair`), and write one page with all pictures."""

__all__: list[str] = []
