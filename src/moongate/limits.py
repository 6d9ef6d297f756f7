"""The limits on what is asked for, and on what is read from files and from the network, each with its reason."""

from moongate.errors import OptionError

__all__ = [
    "CONCEPT_VERSION",
    "MAX_BATCH",
    "MAX_CAPTION_CHARACTERS",
    "MAX_COLUMNS",
    "MAX_COUNT",
    "MAX_DEPTH",
    "MAX_DOWNLOAD_BYTES",
    "MAX_DOWNLOAD_S",
    "MAX_DRAWN_PX",
    "MAX_FILE_NUMBERS",
    "MAX_HEADER_BYTES",
    "MAX_INTEGER",
    "MAX_LAYERS",
    "MAX_LINE_CHARACTERS",
    "MAX_LOG_BYTES",
    "MAX_MEMBERS",
    "MAX_PAIRS",
    "MAX_PICTURE_BYTES",
    "MAX_PIXELS",
    "MAX_PROFILE_BYTES",
    "MAX_REDIRECTS",
    "MAX_ROW_GROUP_BYTES",
    "MAX_ROW_GROUP_VALUES",
    "MAX_SCANS",
    "MAX_SETTING",
    "MAX_SIDE_PX",
    "MAX_SILENCE_S",
    "MAX_TENSORS",
    "MAX_TEXT_BYTES",
    "MAX_TOKENS",
    "MAX_TOKEN_CHARACTERS",
    "MAX_TUPLE_DEPTH",
    "MAX_UPLOAD_BYTES",
    "MAX_WEIGHT_NUMBERS",
    "MAX_WEIGHTS_BYTES",
    "MAX_YAML_CHARACTERS",
    "MIN_SIDE_PX",
    "check_count",
]

MAX_COUNT = 1_000_000
"""More pictures, steps or the like are refused: a list of them would fill the memory, and drawing them take months."""
MAX_BATCH = 4096
"""More pictures in a step of training are refused: the paper takes eight, and no GPU has room for a thousand."""

CONCEPT_VERSION = 1
"""Newest version of the concept file that is read, and the one that is written: a later version may mean other things
by the same names."""

MAX_TEXT_BYTES = 5_000_000
"""Longer texts and JSON are refused, because a megabyte of brackets takes a second: the longest are the tags that
trainers list in a header, with up to two."""
MAX_DEPTH = 64
"""JSON and YAML nested deeper are refused: Python's own limit is a thousand calls, of which some are in use."""
MAX_YAML_CHARACTERS = 1_000_000
"""Longer YAML texts are refused: its parser reads 100 kB a second, and a list of subjects has a few lines."""
MAX_INTEGER = 2**64
"""Larger whole numbers in JSON and YAML are refused: seeds take 64 bits, and Python's numbers grow without end."""
MAX_LINE_CHARACTERS = 1_000_000
"""Longer lines of a listing or a text file end its reading: a caption with its address takes some hundred."""
MAX_COLUMNS = 1000
"""Tables with more columns are refused, because each row would take time for all of them; LAION's have twenty."""
MAX_CAPTION_CHARACTERS = 20_000
"""Longer captions, prompts and names are refused: encoders read 77 tokens, and splitting text takes time."""
MAX_HEADER_BYTES = 25_000_000
"""Longer headers of safetensors files are refused: that of SDXL's checkpoint, with 2,500 tensors, takes 300 kB."""
MAX_WEIGHTS_BYTES = 16_000_000_000
"""Larger files of weights are refused, because they are read whole: SDXL's checkpoint in float32 has 14 GB."""
MAX_LOG_BYTES = 1_000_000_000
"""Longer logs of a run are refused: a step takes 200 bytes."""
MAX_WEIGHT_NUMBERS = 100_000_000
"""Products of small matrices that would make a larger weight are not computed, and no shape such as [0, 10^9] is read:
SDXL's largest key or value projection has 3 million numbers, and two matrices of a megabyte may make a terabyte."""
MAX_FILE_NUMBERS = 500_000_000
"""Adapters whose small matrices stand for more numbers together are refused, because they are multiplied out: 2 GB.
SDXL's keys and values have 340 million numbers, its whole denoiser 2.6 billion."""
MAX_TENSORS = 50_000
"""Files with more tensors are refused: an adapter of every layer of SDXL has 10,000, and each costs some time."""
MAX_TOKENS = 1000
"""More tokens in a file are refused, because adding them to a tokenizer takes time for each. Concepts have one or two,
and embeddings at most as many vectors as a caption has places, 75."""
MAX_TOKEN_CHARACTERS = 100
"""Longer names of words in other programs' files are cut: a user types them in prompts."""
MAX_TUPLE_DEPTH = 16
"""Pickles with tuples nested deeper are refused: a tensor takes two levels, and each level may double the time that a
tuple takes as a key."""
MAX_LAYERS = 100
"""Models of more layers or blocks of one kind are refused: building each takes time. SDXL's have at most 32."""
MAX_SETTING = 1_000_000
"""Larger numbers in a model's configuration are refused, because memory grows with them: the largest of CLIP and of
Stable Diffusion is the number of words, 49,408."""

MIN_SIDE_PX = 16
"""Smaller pictures are refused: they are icons or errors, and show nothing that can be learned."""
MAX_SIDE_PX = 1536
"""Larger pictures are shrunk when they are read: no backbone needs more (SDXL trains at 1024), and memory is finite."""
MAX_DRAWN_PX = 8192
"""Longest side that is drawn by any model: eight times that of SDXL's pictures. Known before a model is loaded."""
MAX_PIXELS = 89_000_000
"""Pictures of more pixels are refused before they are decoded. Decoding and conversion take up to fifteen bytes a
pixel, so this is 1.3 GB; a file of a few kilobytes may declare any size. Pillow warns from here on."""
MAX_PICTURE_BYTES = 500_000_000
"""Larger picture files are refused, because some decoders read them whole: as many pixels as are read take 270 MB
uncompressed."""
MAX_PROFILE_BYTES = 10_000_000
"""Larger color profiles in pictures are ignored: those of printers, which are tables, have up to 3 MB."""
MAX_SCANS = 100
"""JPEGs with more scans are refused: each scan goes over all pixels, and a few bytes make one. Cameras and programs
write one to twelve."""

MAX_MEMBERS = 1_000_000
"""Members of a shard that are read; a shard of WebDataset has some ten thousand."""
MAX_ROW_GROUP_BYTES = 400_000_000
"""Larger columns of one row group of a Parquet file are refused, because they are unpacked whole, and several are kept.
Data sets of pictures have row groups of 100 to 1000 pictures."""
MAX_ROW_GROUP_VALUES = 10_000_000
"""More values in a column of one row group are refused: a few bytes may stand for any number of equal ones. Writers
take a million rows by default."""

MAX_PAIRS = 100_000
"""Studies with more pairs of pictures to compare are refused, because a few bytes of their file make many, and each
takes memory: nobody answers a thousand."""
MAX_UPLOAD_BYTES = 2_000_000_000
"""Larger uploads to the studio are refused: the changes of SDXL without compression take 1.1 GB in one file."""
MAX_DOWNLOAD_BYTES = 50_000_000
"""Larger pictures from the network are refused, so that an address cannot fill the memory; a photo of 100 megapixels
takes less."""
MAX_SILENCE_S = 10
"""Longest wait for a connection and for the next bytes, so that one dead address does not hold up a collection."""
MAX_DOWNLOAD_S = 60
"""Longest time for a whole picture, so that a server that sends byte by byte does not hold its reader."""
MAX_REDIRECTS = 5
"""An address that leads on more often is not followed; shops and data sets need one or two."""


def check_count(name: str, count: int | None, *, at_most: int = MAX_COUNT) -> None:
    """Raise OptionError if a number of pictures, steps or the like is given that is not from 1 to `at_most`."""
    if count is not None and count < 1:
        raise OptionError(f"{name} is {count}; it must be at least 1.")
    if count is not None and count > at_most:
        raise OptionError(f"{name} is {count}; it is at most {at_most}.")
