"""The frozen model: tokenizers, text encoders, denoiser, autoencoder and noise schedule, loaded once.

With its parts (`loading`, `text`, `fingerprint`) the one place that knows families of models: their layers, their
text encoders, what else their denoiser is told, and how a token is added. It knows nothing of concepts, training or
sampling.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import DDPMScheduler
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from moongate.backbone.fingerprint import Fingerprint
from moongate.backbone.loading import load_pipeline
from moongate.backbone.settings import SETTINGS_FILE, Settings
from moongate.backbone.text import Conditioning, TextEncoder
from moongate.errors import OptionError, TokenError
from moongate.pocket import weights_folder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

__all__ = [
    "POCKET",
    "PROJECTION",
    "PROJECTION_FILE",
    "SETTINGS_FILE",
    "Backbone",
    "Conditioning",
    "Fingerprint",
    "Settings",
]

POCKET = "pocket"
"""Name of the model that comes with Moongate."""
WEIGHT_SETS = {
    "cross-attention-kv": (".attn2.to_k.weight", ".attn2.to_v.weight"),
    "cross-attention": (".attn2.to_k.weight", ".attn2.to_v.weight", ".attn2.to_q.weight",
                        ".attn2.to_out.0.weight", ".attn2.to_out.0.bias"),
    "denoiser": ("",),
}  # fmt: skip
"""Sets of denoiser weights by the endings of their names: the paper's K and V, all of cross-attention, or all."""
LAYER_KINDS = {".attn2.": "cross-attention", ".attn1.": "self-attention"}
"""Kinds of layers by a part of their weights' names; all else is "the rest" (paper, Fig. 3)."""
RARE_TOKENS = (42170, 47629, 44746, 43514)
"""Rare entries of CLIP's vocabulary by id, the first two as in the paper (App. D); OpenCLIP has the same vocabulary."""
PROJECTION_FILE, PROJECTION = "caption_projection.safetensors", "text_projection.weight"
"""Optional file in a model folder: the matrix [width, hidden] that takes the feature of a caption's end into the space
that captions and pictures share, as CLIP has it. Pipelines are stored without it, because they draw without it."""


class Backbone:
    """A text-to-image diffusion model with the doors that Moongate needs.

    Images are float [n, 3, height, width] in -1..1; latents are scaled as the denoiser expects them; what it is told
    of captions is a `Conditioning`. Nothing here changes the model except inside `tokens` and `weights_replaced`,
    which put back bit for bit what they found.
    """

    def __init__(
        self,
        *,
        name: str,
        pipeline: "StableDiffusionPipeline | StableDiffusionXLPipeline",
        settings: Settings | None = None,
        caption_projection: Float[Tensor, "width hidden"] | None = None,
    ) -> None:
        self.name = name
        self.text_encoder = pipeline.text_encoder.eval().requires_grad_(False)
        self.encoders: tuple[TextEncoder, ...] = (TextEncoder(pipeline.tokenizer, self.text_encoder),)
        if hasattr(pipeline, "text_encoder_2"):
            self.text_encoder_2 = pipeline.text_encoder_2.eval().requires_grad_(False)
            pairs = ((pipeline.tokenizer, self.text_encoder), (pipeline.tokenizer_2, self.text_encoder_2))
            self.encoders = tuple(TextEncoder(*pair, reads_penultimate=True) for pair in pairs)
        self.unet = pipeline.unet.eval().requires_grad_(False)
        self.vae = pipeline.vae.eval().requires_grad_(False)
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:  # it overflows in float16
            self.vae.float()
        self.scheduler_config: dict[str, Any] = dict(pipeline.scheduler.config)
        self.schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.latent_scale: int = pipeline.vae_scale_factor
        self._zeros_for_empty = bool(pipeline.config.get("force_zeros_for_empty_prompt", False))
        self.settings = settings or Settings()
        self.caption_projection = caption_projection
        self._rows: Mapping[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        model: str | Path = POCKET,
        *,
        config: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load `"pocket"`, a diffusers folder, a single-file checkpoint, or a model id of the hub.

        `config` is for a single file: the folder that says what its weights are the weights of, where neither a
        folder of the same name beside it nor the hub does. `device` defaults to CUDA where there is one. Raises
        BackboneError when the model cannot be found or is none of SD 1.x, SD 2.x and SDXL.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        source = str(weights_folder() if str(model) == POCKET else model)
        pipeline, folder = load_pipeline(source, config=Path(config) if config else None, device=device, dtype=dtype)
        projection = folder / PROJECTION_FILE
        return cls(
            name=str(model),
            pipeline=pipeline,
            settings=Settings.read(folder / SETTINGS_FILE),
            caption_projection=load_file(projection)[PROJECTION].float() if projection.is_file() else None,
        )

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
        return self.settings.lr_scale

    @property
    def retrieval_threshold(self) -> float:
        """Similarity of its own text features from which on a caption is near a prompt; the paper's if not measured."""
        return self.settings.retrieval_threshold

    @property
    def lists_rare_tokens(self) -> bool:
        """Whether the model brings a list of rare tokens of its own."""
        return self.settings.rare_tokens is not None

    @cached_property
    def rare_tokens(self) -> tuple[int, ...]:
        """Ids of rarely used tokens, from which new tokens start (paper, App. D)."""
        known = self.settings.rare_tokens or RARE_TOKENS
        vocabulary = self.encoders[0].table.num_embeddings
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
        if part not in ("unet", "text_encoder", "text_encoder_2"):
            raise KeyError(name)
        module_name, _, leaf = rest.rpartition(".")
        try:
            return getattr(getattr(self, part).get_submodule(module_name), leaf)
        except AttributeError as error:
            raise KeyError(name) from error

    @staticmethod
    def layer_kind(name: str) -> str:
        """Return the kind of layer that a weight called `name` is of: cross-attention, self-attention or the rest."""
        return next((kind for part, kind in LAYER_KINDS.items() if part in name), "the rest")

    def cross_attentions(self) -> dict[str, nn.Module]:
        """Return the modules that attend to text, by full name."""
        return {f"unet.{name}": module for name, module in self.unet.named_modules() if name.endswith(".attn2")}

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

    @contextlib.contextmanager
    def activations_recomputed(self) -> Iterator[None]:
        """Keep few of the denoiser's activations for the way back and compute the others again: memory for time."""
        self.unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            self.unet.disable_gradient_checkpointing()

    # --- text -------------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> "CLIPTokenizer":
        """The tokenizer; where there are two they differ in nothing but the padding."""
        return self.encoders[0].tokenizer

    @property
    def known_tokens(self) -> tuple[str, ...]:
        """The modifier tokens that prompts may use now."""
        return tuple(self._rows)

    @property
    def token_widths(self) -> tuple[int, ...]:
        """Width of a token's row in each text encoder; its whole row is these one after the other."""
        return tuple(encoder.width for encoder in self.encoders)

    def words(self, caption: str) -> list[tuple[str, list[int]]]:
        """Return a caption's words, each with the positions of its pieces in what the denoiser attends to."""
        return self.encoders[0].words(caption)

    def token_row(self, token_id: int) -> Float[Tensor, " width"]:
        """Return a copy, in float32, of one row of the embedding tables."""
        return torch.cat([encoder.table.weight[token_id].detach().float() for encoder in self.encoders])

    def word_row(self, words: str) -> Float[Tensor, " width"]:
        """Return the row of what stands best for some words in one token: the longest piece of the last word.

        It is the paper's choice (App. D): "pot" for "wooden pot", "plush" for "tortoise plushy".
        """
        ids = self.tokenizer(words.split()[-1], add_special_tokens=False).input_ids
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        longest = max(range(len(ids)), key=lambda index: (len(pieces[index].removesuffix("</w>")), index))
        return self.token_row(ids[longest])

    def random_row(self, generator: torch.Generator) -> Float[Tensor, " width"]:
        """Return noise of the mean norm that rows have in each text encoder."""
        parts = []
        for encoder in self.encoders:
            noise = torch.randn(encoder.width, generator=generator).to(self.device)
            usual = float(encoder.table.weight.float().norm(dim=1).mean())
            parts.append(noise * usual / noise.norm())
        return torch.cat(parts)

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

        A row holds a token's rows for all text encoders, `token_widths` wide. Raises TokenError when a token is
        already a word or is in use.
        """
        clash = sorted(set(rows) & set(self._rows))
        if clash:
            raise TokenError(
                f"Two concepts both use the token {clash[0]!r}. Rename one of them, for example with `moongate "
                "convert FILE --to moongate --token '<new2>' --out OTHER`."
            )
        for token in rows:
            self.check_token(token)
        before, everything = self._rows, {**self._rows, **rows}
        edges = pairwise(accumulate(self.token_widths, initial=0))
        with contextlib.ExitStack() as stack:
            for encoder, edge in zip(self.encoders, edges, strict=True):
                stack.enter_context(encoder.extended(everything, columns=slice(*edge)))
            stack.callback(setattr, self, "_rows", before)
            self._rows = everything
            yield

    def unknown_tokens(self, caption: str) -> list[str]:
        """Return the `<words>` of a caption that are not known as tokens."""
        return [token for token in re.findall(r"<[^<>\s]+>", caption) if token not in self._rows]

    def token_ids(self, captions: Sequence[str]) -> Int[Tensor, "captions tokens"]:
        """Tokenize, pad to the model's length, and cut what is longer."""
        return self.encoders[0].token_ids(captions)

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Return what the denoiser is told of captions; gradients reach the rows of tokens in use."""
        read = [encoder.encode(captions) for encoder in self.encoders]
        return Conditioning(features=torch.cat([part.features for part in read], -1), pooled=read[-1].pooled)

    def encode_negative(self, prompt: str, count: int) -> Conditioning:
        """Return what guidance leads away from, `count` times: an empty prompt is all zeros where so made (SDXL)."""
        text = self.encode_text([prompt] * count)
        return text.zeroed() if self._zeros_for_empty and not prompt else text

    # --- pictures and noise -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c lh lw"]:
        """Encode images in -1..1 into scaled latents (the mean of the posterior where there is one)."""
        encoded = self.vae.encode(images.to(self.device, self.vae.dtype))
        latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "n c lh lw"]) -> Float[Tensor, "n 3 h w"]:
        """Decode scaled latents into images in -1..1."""
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        return self.vae.decode(latents).sample.clamp(-1, 1).float()

    def predict(
        self, noisy: Float[Tensor, "n c lh lw"], timesteps: Int[Tensor, " n"], text: Conditioning
    ) -> Float[Tensor, "n c lh lw"]:
        """Return the denoiser's output, in float32.

        A half-precision base computes under autocast, so that trained float32 weights may sit inside it.
        """
        half = self.dtype != torch.float32
        precision = torch.autocast(self.device.type, self.dtype) if half else contextlib.nullcontext()
        given = noisy.to(self.dtype), timesteps, text.features.to(self.dtype)
        with precision:
            return self.unet(*given, added_cond_kwargs=self._added(noisy, text)).sample.float()

    def _added(self, noisy: Float[Tensor, "n c lh lw"], text: Conditioning) -> dict[str, Tensor] | None:
        """Return what SDXL is told beside: the pooled text, and that the picture is whole and of its own size."""
        if text.pooled is None:
            return None
        size = [side * self.latent_scale for side in noisy.shape[-2:]]
        sizes = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=noisy.device)
        return {"text_embeds": text.pooled.to(self.dtype), "time_ids": sizes.expand(len(noisy), -1)}

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
