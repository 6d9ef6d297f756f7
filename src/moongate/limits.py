"""The limits on what is read from files and from the network, each with its reason."""

__all__ = [
    "CONCEPT_VERSION",
    "MAX_CAPTION_CHARACTERS",
    "MAX_DEPTH",
    "MAX_DOWNLOAD_BYTES",
    "MAX_DOWNLOAD_S",
    "MAX_HEADER_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE_PX",
    "MAX_SILENCE_S",
    "MAX_TENSORS",
    "MAX_TEXT_BYTES",
    "MAX_TOKENS",
    "MIN_SIDE_PX",
]

CONCEPT_VERSION = 1
"""Newest version of the concept file that is read, and the one that is written: a later version may mean other things
by the same names."""

MAX_TEXT_BYTES = 25_000_000
"""Longer JSON and YAML texts are refused: no header, configuration or line of a listing comes near this."""
MAX_DEPTH = 64
"""JSON and YAML nested deeper are refused: Python's own limit is a thousand calls, of which some are in use."""
MAX_CAPTION_CHARACTERS = 20_000
"""Longer captions, prompts and names are refused: encoders read 77 tokens, and splitting text takes time."""
MAX_HEADER_BYTES = 25_000_000
"""Longer headers of safetensors files are refused: that of SDXL's checkpoint, with 2,500 tensors, takes 300 kB."""
MAX_TENSORS = 50_000
"""Files with more tensors are refused: an adapter of every layer of SDXL has 10,000, and each costs some time."""
MAX_TOKENS = 1000
"""More tokens in a file are refused, because adding them to a tokenizer takes time for each. Concepts have one or two,
and embeddings at most as many vectors as a caption has places, 75."""

MIN_SIDE_PX = 16
"""Smaller pictures are refused: they are icons or errors, and show nothing that can be learned."""
MAX_SIDE_PX = 1536
"""Larger pictures are shrunk when they are read: no backbone needs more (SDXL trains at 1024), and memory is finite."""
MAX_PIXELS = 89_000_000
"""Pictures of more pixels are refused before they are decoded. Decoding and conversion take up to fifteen bytes a
pixel, so this is 1.3 GB; a file of a few kilobytes may declare any size. Pillow warns from here on."""

MAX_DOWNLOAD_BYTES = 50_000_000
"""Larger pictures from the network are refused, so that an address cannot fill the memory; a photo of 100 megapixels
takes less."""
MAX_SILENCE_S = 10
"""Longest wait for a connection and for the next bytes, so that one dead address does not hold up a collection."""
MAX_DOWNLOAD_S = 60
"""Longest time for a whole picture, so that a server that sends byte by byte does not hold its reader."""
