"""The frozen model: tokenizers, text encoders, denoiser, autoencoder and noise schedule, loaded once.

This package alone knows families of models: their layers, their text encoders, the further inputs of their denoisers,
and how a token is added. All other code passes a `Conditioning` from `encode_text` to `predict` without looking into
it. There is no class for each family: three of them would differ in ten lines. The package knows nothing of concepts,
training or sampling.

The model that comes with Moongate (pocket) is a real diffusers pipeline, so that every test and a first run take the
same path as Stable Diffusion, without a network.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from moongate.backbone.devices import available_device
from moongate.backbone.guidance import guidance_embedding, picture_sizes
from moongate.backbone.hub import located
from moongate.backbone.model_folder import check_layouts
from moongate.backbone.precision import faster_attention, faster_layout, usual_dtype
from moongate.backbone.schedulers import latent_schedule
from moongate.backbone.settings import SETTINGS_FILE, Settings
from moongate.backbone.text import (
    PROJECTION,
    PROJECTION_FILE,
    Conditioning,
    TextEncoder,
    check_distinct,
    check_token,
    folded,
    read_projection,
)
from moongate.backbone.text_only import read_text_parts
from moongate.errors import OptionError
from moongate.fingerprint import Fingerprint, layout_of
from moongate.pocket import weights_folder

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

__all__ = ["POCKET", "PROJECTION", "PROJECTION_FILE", "SETTINGS_FILE", "WEIGHT_SETS",
           "Backbone", "Conditioning", "Fingerprint", "Settings", "usual_dtype"]  # fmt: skip

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
"""Kinds of layers by a part of their weights' names; all others are "the rest" (paper, Fig. 3)."""
RARE_TOKENS = (42170, 47629, 44746, 43514)
"""Ids of rare tokens of CLIP's vocabulary, the first two from the paper (App. B). OpenCLIP has the same vocabulary."""


class Backbone:
    """A text-to-image diffusion model with the operations that Moongate needs.

    Images are float [n, 3, height, width] in -1..1. Latents are scaled as the denoiser expects them. Nothing here
    changes the model except inside `with` blocks such as `tokens` and `weights_replaced`, which restore it exactly.
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
        if hasattr(self.unet, "config"):  # not where only text is read
            faster_attention(self.unet, [encoder.model for encoder in self.encoders])
            self.unet = faster_layout(self.unet)
        self.vae = pipeline.vae.eval().requires_grad_(False)
        if getattr(self.vae, "dtype", None) == torch.float16 and self.vae.config.force_upcast:  # SDXL's overflows
            self.vae.float()
        self.scheduler_config = latent_schedule(pipeline.scheduler.config)
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
        downloads: bool = True,
        layouts: Collection[str] = (),
        text_only: bool = False,
    ) -> Self:
        """Load a model of the families SD 1.x, SD 2.x and SDXL.

        Args:
            model: `"pocket"`, a folder in diffusers' layout, a single file (.safetensors or .ckpt), or a model id of
                the hub.
            config: For a single file: a folder in diffusers' layout with its configuration, with or without weights.
                By default a folder of the file's name next to it, or the hub, has the configuration.
            device: Where the model computes; CUDA by default if there is any.
            dtype: Precision of the frozen weights.
            downloads: Whether a model that is not on this machine is fetched from the hub. Give False for a name that
                comes from a file, so that only the user decides whose models are loaded.
            layouts: Layouts of the fingerprints (`Fingerprint.layout`) that the model must have. They are compared
                before any weights are read or fetched, where the model has a configuration.
            text_only: Whether only text is read, as `merge` does, and nothing drawn. Then the text encoders, keys and
                values are all that is loaded where the model's files allow it, in float32.

        Raises:
            OptionError: There is no such device on this machine.
            BaseMismatchError: The model has another layout.
            BackboneError: The model cannot be found or read, lacks weights, is of another family, or its
                `moongate.json` is wrong.
        """
        device = available_device(device)
        source, downloads = located(str(weights_folder() if str(model) == POCKET else model), downloads=downloads)
        endings = WEIGHT_SETS["cross-attention-kv"]
        is_light = text_only and not config
        read = read_text_parts(source, device=device, endings=endings, layouts=layouts) if is_light else None
        if read:
            pipeline, folder = read
        else:
            from moongate.backbone.loading import denoiser_shapes, load_pipeline

            if layouts:
                shapes = denoiser_shapes(source, downloads=downloads)
                check_layouts(str(model), shapes, layouts, endings=endings)
            place = Path(config) if config else None
            pipeline, folder = load_pipeline(source, config=place, device=device, dtype=dtype, downloads=downloads)
        return cls(
            name=str(model),
            pipeline=pipeline,
            settings=Settings.read(folder / SETTINGS_FILE),
            caption_projection=read_projection(folder),
        )

    # --- facts ----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return cast(torch.device, next(self.unet.parameters()).device)  # diffusers' property visits every module

    @property
    def dtype(self) -> torch.dtype:
        return cast(torch.dtype, next(self.unet.parameters()).dtype)  # as in `device`

    @cached_property
    def schedule(self) -> "DDPMScheduler":
        """The model's noise schedule."""
        from diffusers import DDPMScheduler

        return DDPMScheduler.from_config(self.scheduler_config)

    @property
    def resolution_px(self) -> int:
        """Side of the square pictures the model was trained on, in pixels."""
        return int(self.unet.config.sample_size) * self.latent_scale

    @property
    def train_timesteps(self) -> int:
        """Number of noise levels of the schedule."""
        return int(self.schedule.config.num_train_timesteps)

    @property
    def takes_guidance(self) -> bool:
        """Whether the denoiser takes the scale of guidance as an input, so that one evaluation is enough."""
        return bool(self.unet.config.time_cond_proj_dim)

    @cached_property
    def rare_tokens(self) -> tuple[int, ...]:
        """Ids of rarely used tokens, which initialize new tokens (paper, Sec. 3.1 and App. D)."""
        known = self.settings.rare_tokens or RARE_TOKENS
        vocabulary_size = self.encoders[0].table.num_embeddings
        return tuple(token_id for token_id in known if token_id < vocabulary_size)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Identifies these weights, by the keys and values of cross-attention."""
        weights = self.weights("cross-attention-kv")
        return Fingerprint(
            layout=layout_of({name: tuple(weight.shape) for name, weight in weights.items()}),
            norms=tuple(float(weight.bfloat16().double().norm()) for weight in weights.values()),
        )

    def weights(self, selection: str) -> dict[str, nn.Parameter]:
        """Return the denoiser's parameters of one of `WEIGHT_SETS`, by full name and sorted by it.

        Raises:
            OptionError: There is no such set.
        """
        if selection not in WEIGHT_SETS:
            raise OptionError(f"Unknown set of weights {selection!r}. Known: {', '.join(WEIGHT_SETS)}.")
        named = {f"unet.{name}": weight for name, weight in self.unet.named_parameters()}
        return {name: named[name] for name in sorted(named) if name.endswith(WEIGHT_SETS[selection])}

    def parameter(self, name: str) -> nn.Parameter:
        """Return the parameter with a full name such as "unet.conv_in.weight". Raises KeyError if there is none."""
        part, _, rest = name.partition(".")
        if part not in ("unet", "text_encoder", "text_encoder_2"):
            raise KeyError(name)
        try:
            return cast(nn.Parameter, getattr(self, part).get_parameter(rest))
        except AttributeError as error:
            raise KeyError(name) from error

    @staticmethod
    def layer_kind(name: str) -> str:
        """Return the kind of layer that a weight belongs to: cross-attention, self-attention or the rest."""
        return next((kind for part, kind in LAYER_KINDS.items() if part in name), "the rest")

    def cross_attentions(self) -> dict[str, nn.Module]:
        """Return the modules that attend to text, by full name."""
        return {f"unet.{name}": module for name, module in self.unet.named_modules() if name.endswith(".attn2")}

    def kv_projections(self) -> list[nn.Module]:
        """Return the modules that compute keys and values from text."""
        names = [name.removeprefix("unet.") for name in self.weights("cross-attention-kv")]
        return [self.unet.get_submodule(name.removesuffix(".weight")) for name in names]

    # --- temporary changes ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def weights_replaced(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Use other weights until the block ends.

        Args:
            values: Tensors by full name. They keep their own precision.
        """
        before = {name: self.parameter(name).data for name in values}
        try:
            for name, value in values.items():
                self.parameter(name).data = value
            yield
        finally:
            for name, value in before.items():
                self.parameter(name).data = value

    @contextlib.contextmanager
    def activations_recomputed(self) -> Iterator[None]:
        """Recompute most activations of the denoiser in the backward pass: less memory, more time."""
        self.unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            self.unet.disable_gradient_checkpointing()

    @contextlib.contextmanager
    def autoencoder_parked(self) -> Iterator[None]:
        """Keep the autoencoder in the memory of the CPU until it is used or the block ends."""
        self.vae.to("cpu")
        try:
            yield
        finally:
            self.vae.to(self.device)

    # --- text -------------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> "CLIPTokenizer":
        """The tokenizer. If there are two, they differ in the padding only."""
        return self.encoders[0].tokenizer

    @property
    def known_tokens(self) -> tuple[str, ...]:
        """The tokens that prompts may use now."""
        return tuple(self._rows)

    @property
    def token_widths(self) -> tuple[int, ...]:
        """Width of a token's row in each text encoder.

        A token has one row: those of all text encoders one after the other, like the features that cross-attention
        reads. So merging, compression and files need no second case for SDXL.
        """
        return tuple(encoder.width for encoder in self.encoders)

    def words(self, caption: str) -> list[tuple[str, list[int]]]:
        """Return the words of a caption, each with the positions of its pieces among the features."""
        return self.encoders[0].words(caption)

    def token_row(self, token_id: int) -> Float[Tensor, " width"]:
        """Return a copy of a token's row of the embedding tables, in float32."""
        return torch.cat([encoder.table.weight[token_id].detach().float() for encoder in self.encoders])

    def word_row(self, words: str) -> Float[Tensor, " width"]:
        """Return the row of the token that represents some words best: the longest piece of the last word.

        This is the paper's choice (App. D): "pot" for "wooden pot", "plush" for "tortoise plushy".
        """
        ids = self.tokenizer(words.split()[-1], add_special_tokens=False).input_ids
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        longest = max(range(len(ids)), key=lambda index: (len(pieces[index].removesuffix("</w>")), index))
        return self.token_row(ids[longest])

    def random_row(self, generator: torch.Generator) -> Float[Tensor, " width"]:
        """Return a row drawn from the normal distribution of the rows in each text encoder (App. B, choice of V*)."""
        tables = [encoder.table.weight.detach().float() for encoder in self.encoders]
        noises = [torch.randn(table.shape[1], generator=generator).to(table) for table in tables]
        return torch.cat([table.mean(0) + table.std(0) * noise for table, noise in zip(tables, noises, strict=True)])

    def check_token(self, token: str) -> None:
        """Raise TokenError unless `token` can be added as one new word.

        Angle brackets are required, so that an unknown token in a prompt differs from a word.
        """
        check_token(token, self.tokenizer.get_vocab())

    @contextlib.contextmanager
    def tokens(self, rows: Mapping[str, Float[Tensor, " width"]]) -> Iterator[None]:
        """Let captions use new tokens until the block ends. Gradients reach their rows.

        Args:
            rows: The row of each token, as wide as the sum of `token_widths`.

        Raises:
            TokenError: A token is already in use or cannot be added.
        """
        check_distinct(rows, self._rows)
        for token in rows:
            self.check_token(token)
        before, everything = self._rows, {**self._rows, **rows}
        with contextlib.ExitStack() as stack:
            for encoder, edge in zip(self.encoders, pairwise(accumulate(self.token_widths, initial=0)), strict=True):
                stack.enter_context(encoder.extended(everything, columns=slice(*edge)))
            stack.callback(setattr, self, "_rows", before)
            self._rows = everything
            yield

    def cut_off(self, caption: str) -> str:
        """Return the end of a caption that the text encoders do not read, because it is too long for them."""
        return max((encoder.cut_off(caption) for encoder in self.encoders), key=len)

    def unknown_tokens(self, caption: str) -> list[str]:
        """Return what a caption has in angle brackets and is neither a token in use nor one of the model's own."""
        own = [token for token in self.tokenizer.get_added_vocab() if not token.startswith("<|")]  # not start and end
        known = {*map(folded, (*self._rows, *own))}
        return [token for token in re.findall(r"<[^<>\s]+>", caption) if folded(token) not in known]

    def token_ids(self, captions: Sequence[str]) -> Int[Tensor, "captions tokens"]:
        """Return the token ids of captions, padded or cut to the context of the text encoder."""
        return self.encoders[0].token_ids(captions)

    def encode_text(self, captions: Sequence[str], *, padded: bool = True) -> Conditioning:
        """Return the conditioning of captions; gradients reach the rows of tokens in use.

        The features of several text encoders are side by side, and the last one gives the pooled vector, as in SDXL.
        Without the padding, which only the denoiser reads, they stop at the end token of the longest caption.
        """
        parts = [encoder.encode(captions, padded=padded) for encoder in self.encoders]
        return Conditioning(features=torch.cat([part.features for part in parts], -1), pooled=parts[-1].pooled)

    def encode_negative(self, prompt: str, count: int) -> Conditioning:
        """Return the conditioning that guidance leads away from, `count` times.

        For an empty prompt it is all zeros if the model was trained so (SDXL), else that of the empty caption.
        """
        text = self.encode_text([prompt] * count)
        return text.zeroed() if self._zeros_for_empty and not prompt else text

    # --- pictures and noise -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c lh lw"]:
        """Encode images in -1..1 into scaled latents (the mean of the posterior if the autoencoder has one)."""
        self.vae.to(self.device)
        encoded = self.vae.encode(images.to(self.device, self.vae.dtype))
        latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "n c lh lw"]) -> Float[Tensor, "n 3 h w"]:
        """Decode scaled latents into images in -1..1."""
        self.vae.to(self.device)
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        return self.vae.decode(latents).sample.clamp(-1, 1).float()

    def predict(
        self,
        noisy: Float[Tensor, "n c lh lw"],
        timesteps: Real[Tensor, " n"],
        text: Conditioning,
        *,
        guidance: float | None = None,
    ) -> Float[Tensor, "n c lh lw"]:
        """Return the denoiser's output, in float32.

        A half-precision base computes under autocast, so that it may contain trained weights in float32.

        Args:
            noisy: Latents with noise.
            timesteps: Noise level of each, 0..`train_timesteps`. Integers in training; some schedulers (Euler, Heun)
                give fractions when drawing.
            text: The conditioning of each.
            guidance: Scale of guidance, for a denoiser that takes it as an input; others do not read it.
        """
        scale = None
        if self.takes_guidance and guidance is not None:
            embedding = guidance_embedding(guidance, self.unet.config.time_cond_proj_dim)
            scale = embedding.to(self.device, self.dtype).expand(len(noisy), -1)
        half = self.dtype != torch.float32
        precision = torch.autocast(self.device.type, self.dtype) if half else contextlib.nullcontext()
        inputs = noisy.to(self.dtype), timesteps, text.features.to(self.dtype)
        with precision:
            return self.unet(*inputs, timestep_cond=scale, added_cond_kwargs=self._added(noisy, text)).sample.float()

    def _added(self, noisy: Float[Tensor, "n c lh lw"], text: Conditioning) -> dict[str, Tensor] | None:
        """Return SDXL's further inputs: the pooled text, and that the picture is not cropped and has its own size.

        Training says the same of a subject that was shrunk or enlarged, because whole pictures are to be drawn later.
        """
        if text.pooled is None:
            return None
        height_px, width_px = (side * self.latent_scale for side in noisy.shape[-2:])
        sizes = picture_sizes(height_px, width_px, self.device).expand(len(noisy), -1)
        return {"text_embeds": text.pooled.to(self.dtype), "time_ids": sizes}

    def target(
        self,
        latents: Float[Tensor, "n c lh lw"],
        noise: Float[Tensor, "n c lh lw"],
        timesteps: Int[Tensor, " n"],
    ) -> Float[Tensor, "n c lh lw"]:
        """Return what `predict` should return: the noise, the velocity or the clean latents, depending on the model."""
        kind = self.schedule.config.prediction_type
        if kind == "v_prediction":
            return self.schedule.get_velocity(latents, noise, timesteps)
        return noise if kind == "epsilon" else latents
