"""What other programs call the layers of the denoiser; `backbone` has our names, which are diffusers'.

Three spellings exist: `down_blocks.0.attentions.1.` (diffusers), `input_blocks.2.1.` (CompVis), and either of them with
underscores (kohya). CompVis counts the blocks through all levels; how many there are in a level must be known.
"""

import re
from collections.abc import Iterable

__all__ = ["blocks_per_level", "from_compvis", "kohya_name", "kv_layer", "to_compvis", "unambiguous_levels"]

COMPVIS_PREFIX = "model.diffusion_model."
KOHYA_PREFIX = "lora_unet_"
USUAL_BLOCKS_PER_LEVEL = 3
"""Of every Stable Diffusion: two blocks and what changes the resolution."""

_BLOCK = re.compile(
    r"(?:(down|up|input|output)_blocks[._](\d+)[._](?:attentions[._])?(\d+)|(?:mid|middle)_block[._](?:attentions[._])?\d+)"
    r"(?=[._]transformer_blocks)"
)
_KV = re.compile(r"[._]transformer_blocks[._](\d+)[._]attn2[._](?:processor[._])?to_([kv])(?=[._])")


def kv_layer(key: str, per_level: int) -> str | None:
    """Return our name of the cross-attention key or value that a file's key is about; None when it is of another.

    All three spellings are read.
    """
    block, rest = _BLOCK.search(key), _KV.search(key)
    if not (block and rest and block.end() == rest.start()):
        return None
    return f"unet.{_ours(block, per_level)}.transformer_blocks.{rest[1]}.attn2.to_{rest[2]}.weight"


def from_compvis(key: str, per_level: int) -> str:
    """Return our name of a parameter that CompVis calls `key`."""
    return "unet." + _BLOCK.sub(lambda block: _ours(block, per_level), key.removeprefix(COMPVIS_PREFIX))


def to_compvis(name: str, per_level: int) -> str:
    """Return CompVis' name of one of our parameters, such as "unet.down_blocks.0.attentions.1.…"."""
    return COMPVIS_PREFIX + _BLOCK.sub(lambda block: _theirs(block, per_level), name.removeprefix("unet."))


def kohya_name(name: str, per_level: int | None = None) -> str:
    """Return kohya's name of the module of one of our weights; in CompVis' spelling when `per_level` is given."""
    module = name.removeprefix("unet.").removesuffix(".weight")
    if per_level:
        module = _BLOCK.sub(lambda block: _theirs(block, per_level), module)
    return KOHYA_PREFIX + module.replace(".", "_")


def blocks_per_level(names: Iterable[str]) -> int:
    """Return how many blocks a level has in a denoiser whose attention layers we call `names`."""
    found = [_BLOCK.search(name) for name in names]
    ups = [int(block[3]) for block in found if block and block[1] == "up"]
    return max(ups) + 1 if ups else USUAL_BLOCKS_PER_LEVEL


def unambiguous_levels(keys: Iterable[str]) -> int:
    """Return how many blocks a level has by a file's CompVis names.

    The last block of a level holds no attention, so that no number of an input block with attention is divisible by
    it. Stable Diffusion's three is taken where that is possible.
    """
    found = [_BLOCK.search(key) for key in keys]
    inputs = {int(block[2]) for block in found if block and block[1] == "input"}
    candidates = (USUAL_BLOCKS_PER_LEVEL, 2, *range(4, max(inputs, default=0) + 2))
    return next(per for per in candidates if all(number % per for number in inputs))


def _ours(block: re.Match[str], per_level: int) -> str:
    if block[1] is None:
        return "mid_block.attentions.0"
    level, attention = int(block[2]), int(block[3])
    if block[1] == "input":
        level, attention = divmod(level - 1, per_level)
    elif block[1] == "output":
        level, attention = divmod(level, per_level)
    side = {"input": "down", "output": "up"}.get(block[1], block[1])
    return f"{side}_blocks.{level}.attentions.{attention}"


def _theirs(block: re.Match[str], per_level: int) -> str:
    if block[1] is None:
        return "middle_block.1"
    number = int(block[2]) * per_level + int(block[3])
    return f"input_blocks.{number + 1}.1" if block[1] == "down" else f"output_blocks.{number}.1"
