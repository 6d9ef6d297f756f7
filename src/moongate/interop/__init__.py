"""Everybody's file formats: recognize, read and write them (Custom Diffusion's own, LoRA, embeddings).

`read` makes a concept of any file, `write` a file of any concept; `FORMATS` says what each format keeps.
"""

from moongate.interop.format import Format, WriteOptions
from moongate.interop.formats import FORMATS, named_format, table
from moongate.interop.hub import CARD, card_prompts, check_login, model_card, publish
from moongate.interop.reading import Found, Imported, look, read
from moongate.interop.writing import Written, check_place, write

__all__ = [
    "CARD",
    "FORMATS",
    "Format",
    "Found",
    "Imported",
    "WriteOptions",
    "Written",
    "card_prompts",
    "check_login",
    "check_place",
    "look",
    "model_card",
    "named_format",
    "publish",
    "read",
    "table",
    "write",
]
