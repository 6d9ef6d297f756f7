"""Other programs' file formats: recognize, read and write them (Custom Diffusion's own, LoRA, embeddings).

`read` makes a concept of any file, and `write` makes a file of any concept. `FORMATS` says what each format keeps;
`formats/` has one module for each.
"""

from moongate.interop.formats import FORMATS, named_format, table
from moongate.interop.formats.contract import Format, WriteOptions
from moongate.interop.formats.kohya import bundled_names
from moongate.interop.hub import CARD, card_prompts, check_login, model_card, publish
from moongate.interop.reading import Imported, Recognized, read, recognize
from moongate.interop.writing import Written, check_destination, is_one_file, write

__all__ = [
    "CARD",
    "FORMATS",
    "Format",
    "Imported",
    "Recognized",
    "WriteOptions",
    "Written",
    "bundled_names",
    "card_prompts",
    "check_destination",
    "check_login",
    "is_one_file",
    "model_card",
    "named_format",
    "publish",
    "read",
    "recognize",
    "table",
    "write",
]
