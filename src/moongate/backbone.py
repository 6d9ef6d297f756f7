"""The frozen model: tokenizer, text encoder, denoiser, autoencoder and noise schedule, loaded once.

The one place that knows layer names, how a token is added, and what tells one base from another. It knows nothing
of concepts, training or sampling.
"""

import contextlib
import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import DDPMScheduler
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from .errors import BackboneError, OptionError, TokenError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

__all__ = ["Backbone", "Fingerprint"]

POCKET = "pocket"
WEIGHT_SETS = {
    "cross-attention-kv": (".attn2.to_k.weight", ".attn2.to_v.weight"),
    "cross-attention": (".attn2.to_k.weight", ".attn2.to_v.weight", ".attn2.to_q.weight",
                        ".attn2.to_out.0.weight", ".attn2.to_out.0.bias"),
}  # fmt: skip
"""Sets of denoiser weights by the endings of their names: the paper's K and V, or all of cross-attention."""
SD1_RARE_TOKENS = (42170, 47629, 44746, 43514)
"""Rare entries of OpenAI CLIP's vocabulary by id, the first two as in the paper (App. D)."""
SETTINGS_FILE = "moongate.json"
"""Optional file in a model folder: `rare_tokens` (ids), `lr_scale` and `retrieval_threshold`."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What tells one base from another, whatever the precision it is loaded in.

    `layout` is a hash of the names and shapes of all cross-attention keys and values; `norms` are their Frobenius
    norms after rounding to bfloat16, in name order. The rounding makes them equal for a base loaded in float32 or
    bfloat16, and equal to about 1e-5 for float16; fine-tuning moves some norm by more than the tolerance.
    """

    layout: str
    norms: tuple[float, ...]

    TOLERANCE = 1e-4

    def matches(self, other: Self) -> bool:
        """Tell whether both come from the same weights."""
        if self.layout != other.layout or len(self.norms) != len(other.norms):
            return False
        pairs = zip(self.norms, other.norms, strict=True)
        return all(abs(a - b) <= self.TOLERANCE * max(a, b) for a, b in pairs)

    @property
    def short(self) -> str:
        """Return a name of twelve characters for people to read (it may differ between precisions)."""
        text = self.layout + ",".join(f"{norm:.3g}" for norm in self.norms)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"layout": self.layout, "norms": list(self.norms)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned."""
        return cls(layout=str(value["layout"]), norms=tuple(float(norm) for norm in value["norms"]))


class Backbone:
    """A text-to-image diffusion model with the doors that Moongate needs.

    Images are float [n, 3, height, width] in -1..1; latents are scaled as the denoiser expects them; text features
    are [n, tokens, width]. Nothing here changes the model except inside `tokens` and `weights_replaced`, which put
    back bit for bit what they found.
    """

    def __init__(self, *, name: str, pipeline: "StableDiffusionPipeline", settings: Mapping[str, Any]) -> None:
        self.name = name
        self.tokenizer: CLIPTokenizer = pipeline.tokenizer
        self.text_encoder = pipeline.text_encoder.eval().requires_grad_(False)
        self.unet = pipeline.unet.eval().requires_grad_(False)
        self.vae = pipeline.vae.eval().requires_grad_(False)
        self.scheduler_config: dict[str, Any] = dict(pipeline.scheduler.config)
        self.schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.latent_scale: int = pipeline.vae_scale_factor
        self._settings = settings
        self._rows: Mapping[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        model: str | Path = POCKET,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load `"pocket"`, a diffusers folder, or a model id of the hub.

        `device` defaults to CUDA where there is one. Raises BackboneError when the model cannot be found or is not
        a latent diffusion model with one CLIP text encoder.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        source = str(_pocket_folder() if str(model) == POCKET else model)
        try:
            with _quiet():
                from diffusers import StableDiffusionPipeline

                pipeline = StableDiffusionPipeline.from_pretrained(
                    source, dtype=dtype, safety_checker=None, requires_safety_checker=False
                )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BackboneError(
                f"The model {str(model)!r} cannot be loaded: {_first_line(error)} Give 'pocket', a folder in "
                "diffusers' layout (with model_index.json), or a model id while the hub can be reached."
            ) from error
        pipeline.to(device)
        settings = Path(source) / SETTINGS_FILE
        found = json.loads(settings.read_text()) if settings.is_file() else {}
        return cls(name=str(model), pipeline=pipeline, settings=found)

    # --- facts ----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def resolution_px(self) -> int:
        """Side of the square pictures the model was trained on, in pixels."""
        return int(self.unet.config.sample_size) * self.latent_scale

    @property
    def train_timesteps(self) -> int:
        """Number of noise levels of the schedule."""
        return int(self.schedule.config.num_train_timesteps)

    @property
    def lr_scale(self) -> float:
        """Factor on a method's learning rate that was measured to suit this model; 1 for Stable Diffusion."""
        return float(self._settings.get("lr_scale", 1.0))

    @property
    def retrieval_threshold(self) -> float:
        """Similarity of its own text features from which on a caption is near a prompt; the paper's if not measured."""
        return float(self._settings.get("retrieval_threshold", 0.85))

    @property
    def lists_rare_tokens(self) -> bool:
        """Whether the model brings a list of rare tokens of its own."""
        return "rare_tokens" in self._settings

    @cached_property
    def rare_tokens(self) -> tuple[int, ...]:
        """Ids of rarely used tokens, from which new tokens start (paper, App. D)."""
        known = tuple(self._settings.get("rare_tokens", SD1_RARE_TOKENS))
        vocabulary = self._embedding.num_embeddings
        return tuple(i for i in known if i < vocabulary)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What tells this base from others; taken from the keys and values of cross-attention."""
        weights = self.weights("cross-attention-kv")
        layout = json.dumps({name: list(weight.shape) for name, weight in weights.items()})
        return Fingerprint(
            layout=hashlib.sha256(layout.encode()).hexdigest(),
            norms=tuple(float(weight.bfloat16().double().norm()) for weight in weights.values()),
        )

    def weights(self, selection: str) -> dict[str, nn.Parameter]:
        """Return the denoiser's parameters of a set of `WEIGHT_SETS` by full name, sorted."""
        if selection not in WEIGHT_SETS:
            raise OptionError(f"Unknown set of weights {selection!r}. Known: {', '.join(WEIGHT_SETS)}.")
        named = {f"unet.{name}": weight for name, weight in self.unet.named_parameters()}
        return {name: named[name] for name in sorted(named) if name.endswith(WEIGHT_SETS[selection])}

    def parameter(self, name: str) -> nn.Parameter:
        """Return the parameter called `name` ("unet.…"); KeyError when there is none."""
        part, _, rest = name.partition(".")
        if part not in ("unet", "text_encoder"):
            raise KeyError(name)
        module_name, _, leaf = rest.rpartition(".")
        try:
            return getattr(getattr(self, part).get_submodule(module_name), leaf)
        except AttributeError as error:
            raise KeyError(name) from error

    def kv_projections(self) -> list[nn.Module]:
        """Return the modules that compute keys and values from text."""
        names = [name.removeprefix("unet.") for name in self.weights("cross-attention-kv")]
        return [self.unet.get_submodule(name.removesuffix(".weight")) for name in names]

    # --- weights that are exchanged for a while ---------------------------------------------------------------------

    @contextlib.contextmanager
    def weights_replaced(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Use `values` (by full name, kept in their own precision) and put the old tensors back on exit."""
        found = {name: self.parameter(name).data for name in values}
        try:
            for name, value in values.items():
                self.parameter(name).data = value
            yield
        finally:
            for name, value in found.items():
                self.parameter(name).data = value

    # --- text -------------------------------------------------------------------------------------------------------

    @property
    def _embedding(self) -> nn.Embedding:
        module = self.text_encoder.get_input_embeddings()
        return module.base if isinstance(module, _ExtendedEmbedding) else module

    @property
    def known_tokens(self) -> tuple[str, ...]:
        """The modifier tokens that prompts may use now."""
        return tuple(self._rows)

    def token_row(self, token_id: int) -> Float[Tensor, " width"]:
        """Return a copy, in float32, of one row of the embedding table."""
        return self._embedding.weight[token_id].detach().float().clone()

    @property
    def mean_row_norm(self) -> float:
        """Mean norm of the rows of the embedding table."""
        return float(self._embedding.weight.float().norm(dim=1).mean())

    def check_token(self, token: str) -> None:
        """Raise TokenError unless `token` can be added as one new word."""
        if not token.strip() or any(character.isspace() for character in token):
            raise TokenError(f"The token {token!r} holds white space or nothing. Use one word such as '<bear>'.")
        vocabulary = self.tokenizer.get_vocab()
        if token in vocabulary or token.lower() + "</w>" in vocabulary:
            raise TokenError(
                f"The token {token!r} is already a word of the tokenizer, whose meaning would be lost. "
                f"Use a new one such as '<{token.strip('<>|') or 'new'}1>'."
            )
        if not (token.startswith("<") and token.endswith(">") and len(token) > 2):
            raise TokenError(
                f"The token {token!r} is not written in angle brackets, so that a prompt could not tell it from "
                f"words. Use '<{token.strip('<>')}>'."
            )

    @contextlib.contextmanager
    def tokens(self, rows: Mapping[str, Float[Tensor, " width"]]) -> Iterator[None]:
        """Let captions use the tokens of `rows`; gradients reach the rows. Restores everything on exit.

        The model's own table is neither enlarged nor copied: ids beyond its end are looked up in `rows`. Raises
        TokenError when a token is already a word or is in use.
        """
        clash = sorted(set(rows) & set(self._rows))
        if clash:
            raise TokenError(
                f"Two concepts both use the token {clash[0]!r}. Rename one of them, for example with "
                f"`Concept.load(file).renamed({{{clash[0]!r}: '<new2>'}}).save(other_file)`."
            )
        for token in rows:
            self.check_token(token)
        before = self.tokenizer, self._rows, self.text_encoder.get_input_embeddings()
        base = self._embedding
        everything = {**self._rows, **rows}
        try:
            self.tokenizer = copy.deepcopy(self.tokenizer)
            if rows:
                self.tokenizer.add_tokens(list(rows))
            self._rows = everything
            ids = {self.tokenizer.convert_tokens_to_ids(token): row for token, row in everything.items()}
            self.text_encoder.set_input_embeddings(_ExtendedEmbedding(base, ids))
            yield
        finally:
            self.tokenizer, self._rows, embedding = before
            self.text_encoder.set_input_embeddings(embedding)

    def unknown_tokens(self, caption: str) -> list[str]:
        """Return the `<words>` of a caption that are not known as tokens."""
        return [token for token in re.findall(r"<[^<>\s]+>", caption) if token not in self._rows]

    def token_ids(self, captions: Sequence[str]) -> Int[Tensor, "captions tokens"]:
        """Tokenize, pad to the model's length, and cut what is longer."""
        encoded = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return encoded.input_ids.to(self.device)

    def encode_text(self, captions: Sequence[str]) -> Float[Tensor, "captions tokens width"]:
        """Return the text features that cross-attention attends to."""
        return self.text_encoder(self.token_ids(captions)).last_hidden_state

    # --- pictures and noise -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c lh lw"]:
        """Encode images in -1..1 into scaled latents (the mean of the posterior where there is one)."""
        encoded = self.vae.encode(images.to(self.device, self.dtype))
        latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "n c lh lw"]) -> Float[Tensor, "n 3 h w"]:
        """Decode scaled latents into images in -1..1."""
        latents = latents.to(self.dtype) / self.vae.config.scaling_factor
        return self.vae.decode(latents).sample.clamp(-1, 1).float()

    def predict(
        self,
        noisy: Float[Tensor, "n c lh lw"],
        timesteps: Int[Tensor, " n"],
        text: Float[Tensor, "n tokens width"],
    ) -> Float[Tensor, "n c lh lw"]:
        """Return the denoiser's output, in float32.

        A half-precision base computes under autocast, so that trained float32 weights may sit inside it.
        """
        half = self.dtype != torch.float32
        precision = torch.autocast(self.device.type, self.dtype) if half else contextlib.nullcontext()
        with precision:
            return self.unet(noisy.to(self.dtype), timesteps, text.to(self.dtype)).sample.float()

    def target(
        self,
        latents: Float[Tensor, "n c lh lw"],
        noise: Float[Tensor, "n c lh lw"],
        timesteps: Int[Tensor, " n"],
    ) -> Float[Tensor, "n c lh lw"]:
        """Return what `predict` should give: the noise, the velocity or the clean latents, as the model was made."""
        kind = self.schedule.config.prediction_type
        if kind == "v_prediction":
            return self.schedule.get_velocity(latents, noise, timesteps)
        return noise if kind == "epsilon" else latents


class _ExtendedEmbedding(nn.Module):
    """The embedding table with further rows, kept apart from it, for ids beyond its end."""

    def __init__(self, base: nn.Embedding, rows: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.base = base
        self.rows = rows
        self.weight = base.weight

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.base(ids.clamp(max=self.base.num_embeddings - 1))
        for token_id, row in self.rows.items():
            embedded = torch.where((ids == token_id).unsqueeze(-1), row.to(embedded), embedded)
        return embedded


def _pocket_folder() -> Path:
    from .pocket import weights_folder

    return weights_folder()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep remarks and progress bars of the libraries from the terminal while a model is read."""
    libraries = (diffusers_logging, transformers_logging)
    found = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (level, bars) in zip(libraries, found, strict=True):
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith(".") else line + "."
