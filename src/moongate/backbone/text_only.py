"""The part of a model that a merge reads: tokenizers, text encoders, and the denoiser's keys and values.

They are read from the files of a model folder without the libraries' classes for models, whose import takes twice the
time of PyTorch's own. Where a folder is unusual in any way, nothing is read, and the whole model is loaded instead.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from moongate.backbone.file_tokenizer import FileTokenizer
from moongate.backbone.hub import INDEX, snapshot
from moongate.backbone.model_folder import FAMILIES, check_classes, check_folder, check_layouts
from moongate.errors import BackboneError
from moongate.texts import parse_json, read_text

__all__ = ["TEXT_PREFIX", "TextModel", "TextParts", "read_text_parts"]

ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}
TEXT_PREFIX = "text_model."
"""What transformers wrote before every name of a text encoder until version 5."""
UNUSUAL: tuple[type[Exception], ...] = (Exception,)
"""What reading a folder raises that is not as usual; tokenizers raises `Exception` itself."""
WITH_PROJECTION = "CLIPTextModelWithProjection"
NAMES = {
    "self_attn.out_proj": "self_attn.out_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "linear1": "mlp.fc1",
    "linear2": "mlp.fc2",
}
"""PyTorch's names of a layer's parts, and CLIP's."""


@dataclass(kw_only=True)
class TextParts:
    """Stands for a pipeline: what `Backbone` takes of one, without what draws."""

    tokenizer: Any
    text_encoder: "TextModel"
    unet: nn.Module
    """Holds keys and values under their own names, and nothing else."""
    config: Mapping[str, Any]
    scheduler: Any
    vae: nn.Module = field(default_factory=nn.Module)
    vae_scale_factor: int = 8

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of keys and values by name."""
        return {name: tuple(weight.shape) for name, weight in self.unet.named_parameters()}


class TextModel(nn.Module):
    """CLIP's text transformer, with the interface of transformers' own that `TextEncoder` uses.

    Args:
        config: The content of its `config.json`.
        weights: The tensors of its file.
        projects: Whether it has a projection of the pooled feature.

    Raises:
        KeyError: The configuration or the file lacks something.
    """

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor], *, projects: bool) -> None:
        super().__init__()
        named = {name.removeprefix(TEXT_PREFIX): weight for name, weight in weights.items()}
        self.config = SimpleNamespace(max_position_embeddings=int(config["max_position_embeddings"]))
        self.embedding: nn.Module = nn.Embedding.from_pretrained(named["embeddings.token_embedding.weight"])
        self.positions = nn.Parameter(named["embeddings.position_embedding.weight"], requires_grad=False)
        width = self.positions.shape[1]
        layer = nn.TransformerEncoderLayer(
            width,
            int(config["num_attention_heads"]),
            int(config["intermediate_size"]),
            dropout=0.0,
            activation=ACTIVATIONS[config["hidden_act"]],
            layer_norm_eps=float(config["layer_norm_eps"]),
            batch_first=True,
            norm_first=True,
            device="meta",
        )
        self.layers = nn.ModuleList()
        for number in range(int(config["num_hidden_layers"])):
            self.layers.append(_filled(layer, named, f"encoder.layers.{number}."))
        self.norm = nn.LayerNorm(width, eps=float(config["layer_norm_eps"]), device="meta")
        ends = {name: named[f"final_layer_norm.{name}"] for name in ("weight", "bias")}
        self.norm.load_state_dict(ends, assign=True)
        if projects:
            projection = named["text_projection.weight"]
            self.text_projection = nn.Linear(projection.shape[1], projection.shape[0], bias=False, device="meta")
            self.text_projection.load_state_dict({"weight": projection}, assign=True)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.positions.device

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding table."""
        return self.embedding

    def set_input_embeddings(self, embedding: nn.Module) -> None:
        """Replace the embedding table."""
        self.embedding = embedding

    def forward(self, ids: Int[Tensor, "captions tokens"], output_hidden_states: bool = False) -> SimpleNamespace:
        """Return the last hidden state with, and the others without, the final normalization."""
        count = ids.shape[1]
        states: list[Float[Tensor, "captions tokens width"]] = [self.embedding(ids) + self.positions[:count]]
        mask = nn.Transformer.generate_square_subsequent_mask(count, device=ids.device)
        for layer in self.layers:
            states.append(layer(states[-1], src_mask=mask, is_causal=True))
        return SimpleNamespace(last_hidden_state=self.norm(states[-1]), hidden_states=states)


def read_text_parts(
    model: str, *, device: torch.device, endings: tuple[str, ...], layouts: Collection[str] = ()
) -> tuple[TextParts, Path] | None:
    """Read what a merge needs of a model that is on this machine, in float32.

    Args:
        model: A model folder, or a model id whose folder is in the hub's cache.
        device: Where it computes.
        endings: How the names of keys and values end.
        layouts: The layouts of keys and values that concepts expect (`Fingerprint.layout`).

    Returns:
        The parts and the folder; None where only the whole model can be loaded, or where loading says what is wrong.

    Raises:
        BackboneError: The folder may not be read (`backbone.model_folder`).
    """
    folder = Path(model) if Path(model).is_dir() else snapshot(model)
    if folder is None or not (folder / INDEX).is_file():
        return None
    check_folder(folder)
    try:
        index = parse_json(read_text(folder / INDEX))
        if index["_class_name"] not in FAMILIES:
            return None
        check_classes({part: entry for part, entry in index.items() if part != "scheduler"}, model)
        denoiser = _tensors(folder / "unet" / "diffusion_pytorch_model.safetensors", endings)
        parts = TextParts(
            tokenizer=_tokenizer(folder / "tokenizer"),
            text_encoder=_text_model(folder / "text_encoder", index["text_encoder"]),
            unet=_named(denoiser),
            config=index,
            scheduler=SimpleNamespace(config={}),
        )
        check_layouts(model, parts.shapes, layouts, endings=endings)
        of_each = [{name.removesuffix(ending) for name in denoiser if name.endswith(ending)} for ending in endings]
        if any(names != of_each[0] for names in of_each):
            raise KeyError("a key has no value, or a value no key")
        if "text_encoder_2" in index:
            second = _tokenizer(folder / "tokenizer_2"), _text_model(folder / "text_encoder_2", index["text_encoder_2"])
            parts.tokenizer_2, parts.text_encoder_2 = second  # type: ignore[attr-defined]
    except BackboneError:
        raise
    except UNUSUAL:
        return None
    for part in vars(parts).values():
        if isinstance(part, nn.Module):
            part.to(device)
    return parts, folder


def _text_model(folder: Path, entry: Sequence[str]) -> TextModel:
    config = parse_json(read_text(folder / "config.json"))
    weights = _tensors(folder / "model.safetensors", ("",))
    return TextModel(config, weights, projects=entry[1] == WITH_PROJECTION).eval()


def _tokenizer(folder: Path) -> Any:
    if (folder / "tokenizer.json").is_file():
        return FileTokenizer(folder)
    from transformers import CLIPTokenizer

    if not folder.is_dir():
        raise FileNotFoundError(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _tensors(file: Path, endings: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors of a file whose names end so, in float32."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name).float() for name in opened.keys() if name.endswith(endings)}  # noqa: SIM118


def _named(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return modules whose parameters have these names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        module, (*path, leaf) = root, name.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root


def _filled(layer: nn.TransformerEncoderLayer, named: Mapping[str, Tensor], prefix: str) -> nn.Module:
    """Return a copy of an empty layer with the weights of one layer of CLIP."""
    state = {}
    for kind in ("weight", "bias"):
        projections = [named[f"{prefix}self_attn.{part}_proj.{kind}"] for part in "qkv"]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(projections)
        for ours, theirs in NAMES.items():
            state[f"{ours}.{kind}"] = named[f"{prefix}{theirs}.{kind}"]
    filled = copy.deepcopy(layer)
    filled.load_state_dict(state, assign=True)
    return filled.requires_grad_(False)
