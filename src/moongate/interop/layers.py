"""The names that other programs give the layers of the denoiser. Moongate's own names are those of diffusers.

There are three spellings: `down_blocks.0.attentions.1.` (diffusers), `input_blocks.2.1.` (CompVis), and either of them
with underscores instead of dots (kohya). CompVis numbers the blocks through all levels of the denoiser, so its names
can only be translated when the number of blocks in a level is known.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moongate.errors import ConceptFileError

__all__ = [
    "COMPVIS_PREFIX",
    "KOHYA_PREFIX",
    "USUAL_BLOCKS_PER_LEVEL",
    "blocks_per_level",
    "from_compvis",
    "inferred_blocks_per_level",
    "kinds_of",
    "kohya_name",
    "kv_layer",
    "renamed",
    "to_compvis",
    "unwrapped",
]

COMPVIS_PREFIX = "model.diffusion_model."
KOHYA_PREFIX = "lora_unet_"
USUAL_BLOCKS_PER_LEVEL = 3
"""The number in every Stable Diffusion: two blocks, and one that changes the resolution."""
KINDS = (
    ("layers with DoRA", r"dora_scale|lora_magnitude_vector"),
    ("layers with LoHa", r"\.hada_"),
    ("layers with LoKr", r"\.lokr_"),
    ("layers with OFT or BOFT", r"\.b?oft_"),
    ("layers with GLoRA", r"\.[ab][12]\.weight$"),
    ("layers with (IA)3", r"\.on_input$|ia3_"),
    ("layers with VeRA", r"vera_lambda"),
    ("biases", r"\.(?:diff_b|bias)$"),
    ("embeddings of a text encoder's output", r"^bundle_emb.*_out$"),
    ("the text encoder", r"^lora_te|text_encoder|text_model|bundle_emb"),
    ("self-attention (attn1)", r"attn1"),
    ("queries (attn2.to_q)", r"attn2.*to[._]q"),
    ("outputs of cross-attention (attn2.to_out)", r"attn2.*to[._]out"),
    ("feed-forward layers", r"ff[._]net|[._]ff[._]"),
    ("projections around attention", r"proj[._](?:in|out)"),
    ("time embeddings", r"time[._]emb|add_emb|label_emb|emb_layers"),
    ("convolutions", r"resnets|conv|samplers|(?:in|out)_layers|skip_connection|[._]op\."),
)
"""What a key is about, and the pattern that says so; the first that matches counts."""
LONGEST_KEY = 300

OUTER_MODULES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
"""Modules outside the blocks, and their names in CompVis' spelling."""
RESNET_MODULES = {
    ".norm1": ".in_layers.0",
    ".conv1": ".in_layers.2",
    ".time_emb_proj": ".emb_layers.1",
    ".norm2": ".out_layers.0",
    ".conv2": ".out_layers.3",
    ".conv_shortcut": ".skip_connection",
}
"""Modules of a residual block, and their names in CompVis' spelling."""

_ANY_BLOCK = re.compile(
    r"(?:mid_block|(?P<side>down|up)_blocks\.(?P<level>\d+))\.(?P<kind>attentions|resnets|downsamplers|upsamplers)"
    r"\.(?P<number>\d+)"
)
_BLOCK = re.compile(
    r"(?:(down|up|input|output)_blocks[._](\d{1,3})[._](?:attentions[._])?(\d{1,3})|(?:mid|middle)_block[._](?:attentions[._])?\d+)"
    r"(?=[._]transformer_blocks)"
)
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|base_model|model|unet)\.)+")
"""What programs put before a name: PyTorch for a model on several GPUs or compiled, PEFT, and pipelines."""
_OTHER_MODEL = re.compile("control")
"""What stands before a block of a ControlNet, whose layers have the names of the denoiser's."""
_KV = re.compile(r"[._]transformer_blocks[._](\d+)[._]attn2[._](?:processor[._])?to_([kv])(?=[._])")


def kv_layer(key: str, per_level: int) -> str | None:
    """Return Moongate's name of the cross-attention key or value matrix that a file's key belongs to.

    Args:
        key: A key of a file, in any of the three spellings.
        per_level: Blocks in a level of the denoiser; only names in CompVis' spelling depend on it.

    Returns:
        A parameter name such as `unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight`, or None when
        the key belongs to another layer.
    """
    block, rest = _BLOCK.search(key), _KV.search(key)
    if not (block and rest and block.end() == rest.start()) or _OTHER_MODEL.search(key, 0, block.start()):
        return None
    return f"unet.{_diffusers_block(block, per_level)}.transformer_blocks.{rest[1]}.attn2.to_{rest[2]}.weight"


def unwrapped(key: str) -> str:
    """Return a parameter's name in diffusers' spelling without what programs put before it, such as "module."."""
    return _WRAPPERS.sub("", key)


def renamed(values: Mapping[Any, Any], name_of: Callable[[str], str]) -> dict[str, Any]:
    """Return values by other names.

    Raises:
        ConceptFileError: Two of them get one name.
    """
    names: dict[str, Any] = {}
    for key in values:
        name = name_of(str(key))
        if name in names:
            raise ConceptFileError(f"The file holds {name!r} twice, as {names[name]!r} and {key!r}. Give one of them.")
        names[name] = key
    return {name: values[key] for name, key in names.items()}


def from_compvis(key: str, per_level: int) -> str:
    """Return Moongate's name of an attention parameter that CompVis calls `key`.

    Args:
        key: The name in CompVis' spelling, with or without `COMPVIS_PREFIX`.
        per_level: Blocks in a level of the denoiser.
    """
    return "unet." + _BLOCK.sub(lambda block: _diffusers_block(block, per_level), key.removeprefix(COMPVIS_PREFIX))


def to_compvis(name: str, per_level: int) -> str:
    """Return CompVis' name of one of our attention parameters.

    Args:
        name: Moongate's name, such as `unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight`.
        per_level: Blocks in a level of the denoiser.
    """
    return COMPVIS_PREFIX + _BLOCK.sub(lambda block: _compvis_block(block, per_level), name.removeprefix("unet."))


def kohya_name(name: str, per_level: int | None = None) -> str:
    """Return kohya's name of the module that holds one of our weights.

    Args:
        name: Moongate's name of a weight of the denoiser.
        per_level: Blocks in a level of the denoiser, for a name in CompVis' spelling; None for diffusers' spelling. A
            file must not mix them: diffusers then drops the names in CompVis' spelling.
    """
    module = name.removeprefix("unet.").removesuffix(".weight")
    if per_level:
        module = _compvis_module(module, per_level)
    return KOHYA_PREFIX + module.replace(".", "_")


def blocks_per_level(names: Iterable[str]) -> int:
    """Return the number of blocks in a level of a denoiser, given our names of all its attention layers.

    Names of some layers are not enough: the number is that of the largest level.
    """
    blocks = [_BLOCK.search(name) for name in names]
    up_blocks = [int(block[3]) for block in blocks if block and block[1] == "up"]
    return max(up_blocks) + 1 if up_blocks else USUAL_BLOCKS_PER_LEVEL


def inferred_blocks_per_level(keys: Iterable[str]) -> int:
    """Return the number of blocks in a level of a denoiser, inferred from a file's names in CompVis' spelling.

    The last block of a level has no attention, so the number of an input block with attention is never a multiple of
    the blocks in a level. The three of Stable Diffusion is returned when the names allow it.
    """
    blocks = [_BLOCK.search(key) for key in keys]
    inputs = {int(block[2]) for block in blocks if block and block[1] == "input"}
    candidates = (USUAL_BLOCKS_PER_LEVEL, 2, *range(4, max(inputs, default=0) + 2))
    fitting = (count for count in candidates if all(number % count for number in inputs))
    return next(fitting, USUAL_BLOCKS_PER_LEVEL)  # of no denoiser: the names will fit no base


def kinds_of(keys: Iterable[str]) -> list[str]:
    """Return what the keys of a file are about, for people: `self-attention (attn1) (12 tensors)`.

    A key of no known kind is named itself, and so is a longer one than any model has, which would take time to search.
    """
    counts: dict[str, int] = {}
    for key in keys:
        kinds = KINDS if len(key) <= LONGEST_KEY else ()
        kind = next((name for name, pattern in kinds if re.search(pattern, key)), repr(key))
        counts[kind] = counts.get(kind, 0) + 1
    return [f"{kind} ({count} tensors)" if count > 1 else kind for kind, count in counts.items()]


def _compvis_module(module: str, per_level: int) -> str:
    """Return CompVis' name of any module of the denoiser, such as "down_blocks.1.resnets.0.time_emb_proj"."""
    module = _replaced(module, OUTER_MODULES)
    block = _ANY_BLOCK.match(module)
    if not block:
        return module
    side, rest = block["side"] or "mid", module[block.end() :]
    kind, number = block["kind"], int(block["number"])
    first = int(block["level"] or 0) * per_level
    if kind == "resnets":
        rest = _replaced(rest, RESNET_MODULES)
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{first + per_level}.0{rest.replace('.conv', '.op')}"
    if kind == "upsamplers":  # after the attention of the level's last block
        return f"output_blocks.{first + per_level - 1}.2{rest}"
    place = f"input_blocks.{first + number + 1}" if side == "down" else f"output_blocks.{first + number}"
    return f"{place}.{1 if kind == 'attentions' else 0}{rest}"


def _replaced(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name


def _diffusers_block(block: re.Match[str], per_level: int) -> str:
    if block[1] is None:
        return "mid_block.attentions.0"
    level, attention = int(block[2]), int(block[3])
    if block[1] == "input":
        level, attention = divmod(level - 1, per_level)
    elif block[1] == "output":
        level, attention = divmod(level, per_level)
    side = {"input": "down", "output": "up"}.get(block[1], block[1])
    return f"{side}_blocks.{level}.attentions.{attention}"


def _compvis_block(block: re.Match[str], per_level: int) -> str:
    if block[1] is None:
        return "middle_block.1"
    number = int(block[2]) * per_level + int(block[3])
    return f"input_blocks.{number + 1}.1" if block[1] == "down" else f"output_blocks.{number}.1"
