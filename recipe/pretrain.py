"""Pretrain pocket from a corpus: `python -m moongate.pocket.pretrain --corpus corpus/ --out runs/pocket`.

Six stages, each resumable from its last checkpoint and skipped once finished: a byte-pair `tokenizer`, the
`autoencoder`, the contrastive text and image towers (`clip`), the stored `latents`, the `unet`, and the `decoder` once
more, on those latents; `assemble` then writes a folder that `StableDiffusionPipeline.from_pretrained` loads. The same
program runs on a CPU and on CUDA.
The library never imports this module.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from diffusers import AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from moongate.backbone import PROJECTION, PROJECTION_FILE, SETTINGS_FILE
from recipe.corpus import Corpus
from recipe.fitting import Stage, fit, native_autocast, save
from recipe.pieces import CONTEXT_TOKENS, learn_pieces

IMAGE_TOWER = "image_encoder"
"""Folder of pocket CLIP's image tower beside the parts of the pipeline."""
TEXT_WIDTH = 256
LR_SCALE = 4.0
"""Factor on a method's learning rate: of 1 and 4, the one that fits better and forgets no more."""
RETRIEVAL_THRESHOLD = 0.39
"""Similarity that balances precision and recall best for ten categories (`benchmarks/retrieval.py`)."""
DEFAULTS = {
    "regularization": "pool",
    "prompt_sets": ["pocket", "pocket-pair"],
    "features": ["pocket-clip", "efficientnet-lite0"],
}
"""Defaults of the commands on pocket: its own pictures, prompts in words that it knows, networks that come with it."""
NOISE_CENTRE, NOISE_SPREAD = 0.8, 1.0
"""Three noise levels in four are drawn logit-normally, half of them above 0.69, where the outline of things is decided;
the fourth is uniform, because sampling begins at the very end and needs all levels."""
RARE_OCCURRENCES = (5, 10)
"""A token is rare when the captions hold it this often (paper, App. D)."""

AUTOENCODER = {
    "encoder_block_out_channels": (48, 48, 48, 48),
    "decoder_block_out_channels": (48, 48, 48, 48),
    "num_encoder_blocks": (0, 1, 2, 3),
    "num_decoder_blocks": (3, 2, 1, 0),
    "latent_channels": 4,
    "scaling_factor": 1.0,
}
UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": (1, 2, 3),  # the number of heads, 64 channels each
}
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "steps_offset": 1,  # as pipelines expect it; trailing spacing does not use it
}


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """Where to read and write, and how long to train."""

    corpus: Path = Path("corpus")
    out: Path = Path("runs/pocket")
    start_from: Path | None = None
    """A folder of earlier weights: its tokenizer and text encoder are kept, and the autoencoder and the denoiser begin
    with its weights where the shapes agree."""
    device: str = "cpu"
    until: str = "assemble"
    """Last stage to run: tokenizer, autoencoder, clip, latents, unet, decoder or assemble."""
    autoencoder: Stage = field(default_factory=lambda: Stage(steps=2300, batch=64, rate=2e-3, optimizer="muon"))
    clip: Stage = field(default_factory=lambda: Stage(steps=500, batch=128, rate=1e-3))
    unet: Stage = field(default_factory=lambda: Stage(steps=5300, batch=128, rate=1e-3, optimizer="muon"))
    decoder: Stage = field(default_factory=lambda: Stage(steps=150, batch=64, rate=1e-3))
    compile: bool = False
    """Compile the denoiser, which needs a C++ compiler and four minutes, and then trains half as fast again."""
    unconditional_share: float = 0.1
    """Share of pictures whose caption is left out, so that guidance has something to guide from."""
    critic_weight: float = 0.05
    """How much the decoder's pictures shall pass for real ones, beside being like the one they are of."""
    checkpoint_minutes: float = 4.0
    seed: int = 0


def pretrain(options: PretrainOptions) -> None:
    """Run all stages up to `options.until`."""
    options.out.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(options.corpus)
    stages: dict[str, Callable[[PretrainOptions, Corpus], None]] = {
        "tokenizer": train_tokenizer,
        "autoencoder": train_autoencoder,
        "clip": train_clip,
        "latents": store_latents,
        "unet": train_unet,
        "decoder": train_decoder,
        "assemble": assemble,
    }
    for name, stage in stages.items():
        stage(options, corpus)
        if name == options.until:
            return


# --- what stages share --------------------------------------------------------------------------------------------


def _begin_with(model: nn.Module, earlier: Path | None) -> None:
    """Load the safetensors weights of `earlier`, but for those that `model` lacks or has in another shape."""
    if earlier is not None:
        weights, own = load_file(earlier / "diffusion_pytorch_model.safetensors"), model.state_dict()
        fitting = {name: weight for name, weight in weights.items() if name in own and own[name].shape == weight.shape}
        model.load_state_dict(own | fitting)


def _pick(count: int, batch: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, count, (batch,), generator=generator)


# --- stages -----------------------------------------------------------------------------------------------------


def train_tokenizer(options: PretrainOptions, corpus: Corpus) -> None:
    """Learn byte-pair pieces on the captions and note which are rare (paper, App. D), or keep the earlier ones.

    What is rare depends on the captions that the text tower was trained on, so an earlier tower brings its list.
    """
    folder = options.out / "tokenizer"
    if folder.exists():
        return
    if options.start_from is None:
        captions = corpus.captions[: corpus.training]
        tokenizer = learn_pieces(captions)
        counts = Counter(i for caption in captions for i in tokenizer(caption).input_ids)
        low, high = RARE_OCCURRENCES
        rare = [i for i, count in sorted(counts.items()) if low <= count <= high]
    else:
        tokenizer = CLIPTokenizer.from_pretrained(options.start_from / "tokenizer")
        rare = json.loads((options.start_from / SETTINGS_FILE).read_text())["rare_tokens"]
    tokenizer.save_pretrained(folder)
    (folder / "rare_tokens.json").write_text(json.dumps({"ids": rare}))


def load_tokenizer(options: PretrainOptions) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(options.out / "tokenizer")


def train_autoencoder(options: PretrainOptions, corpus: Corpus) -> None:
    """Train on 64-pixel crops; latents are kept near zero mean and unit variance."""
    torch.manual_seed(options.seed)
    model = AutoencoderTiny(**AUTOENCODER)
    _begin_with(model, options.start_from and options.start_from / "vae")

    def loss_of(generator: torch.Generator) -> Tensor:
        images = corpus.images(_pick(corpus.training, options.autoencoder.batch, generator))
        top, left = torch.randint(0, 9, (2,), generator=generator).mul(8).tolist()
        images = images[:, :, top : top + 64, left : left + 64].to(options.device)
        images = images.contiguous(memory_format=torch.channels_last)
        with native_autocast(options.device):
            latents = model.encoder(images)
            noise = torch.randn(latents.shape, generator=generator).to(options.device)
            decoded = model.decoder(latents + 0.05 * noise).float()
        latents = latents.float()
        dims = (0, 2, 3)
        moments = latents.mean(dims).square().mean() + (latents.std(dims) - 1).square().mean()
        return _picture_loss(decoded, images) + 0.02 * moments

    fit("autoencoder", model, loss_of, options.autoencoder, options)
    model.save_pretrained(options.out / "vae")


def _picture_loss(decoded: Tensor, images: Tensor) -> Tensor:
    loss = 4 * F.mse_loss(decoded, images) + F.l1_loss(decoded, images)
    loss = loss + F.l1_loss(F.avg_pool2d(decoded, 4), F.avg_pool2d(images, 4))
    for dim in (2, 3):
        loss = loss + 0.5 * F.l1_loss(decoded.diff(dim=dim), images.diff(dim=dim))
    return loss


def train_clip(options: PretrainOptions, corpus: Corpus) -> None:
    """Train a small CLIP contrastively; its text tower then conditions the UNet, frozen.

    An earlier text tower stays as it is: the image tower and both projections are trained further.
    """
    from transformers import CLIPConfig

    torch.manual_seed(options.seed + 1)
    tokenizer = load_tokenizer(options)
    common = {"intermediate_size": 4 * TEXT_WIDTH, "hidden_act": "gelu", "projection_dim": TEXT_WIDTH}
    text = common | {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = common | {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "image_size": 128,
        "patch_size": 16,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH))
    nn.init.eye_(model.text_projection.weight)
    if options.start_from is not None:
        tower, images = _text_encoder(options), options.start_from / IMAGE_TOWER
        model.text_model.load_state_dict(getattr(tower, "text_model", tower).state_dict())
        model.text_model.requires_grad_(False)
        model.load_state_dict(CLIPVisionModelWithProjection.from_pretrained(images).state_dict(), strict=False)
        model.load_state_dict(load_file(options.start_from / PROJECTION_FILE), strict=False)
    ids = _token_ids(tokenizer, corpus.captions)
    longest = int((ids != tokenizer.pad_token_id).sum(1).max()) + 1  # padding after a caption changes nothing before it
    ids = ids[:, :longest]

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = _pick(corpus.training, options.clip.batch, generator).sort().values
        with native_autocast(options.device):
            output = model(
                input_ids=ids[chosen].to(options.device), pixel_values=corpus.images(chosen).to(options.device)
            )
        logits = output.logits_per_text.float()
        same = ids[chosen, None].eq(ids[None, chosen]).all(-1).to(logits)  # one caption may stand under many pictures
        truth = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2

    fit("clip", model, loss_of, options.clip, options)
    model.save_pretrained(options.out / "clip_model")


def _text_encoder(options: PretrainOptions) -> CLIPTextModel:
    if options.start_from is None:
        return CLIPTextModel.from_pretrained(options.out / "clip_model")
    return CLIPTextModel.from_pretrained(options.start_from / "text_encoder", dtype=torch.float32)


def _token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    encoded = tokenizer(captions, padding="max_length", truncation=True, max_length=CONTEXT_TOKENS, return_tensors="pt")
    return encoded.input_ids


@torch.no_grad()
def store_latents(options: PretrainOptions, corpus: Corpus) -> None:
    """Encode every training picture once."""
    path = options.out / "latents.pt"
    if path.exists():
        return
    model = AutoencoderTiny.from_pretrained(options.out / "vae").to(options.device, memory_format=torch.channels_last)
    latents = torch.empty(corpus.training, 4, 16, 16, dtype=torch.float16)
    with Progress() as progress:
        for indices in progress.track(torch.arange(corpus.training).split(128), description="latents"):
            with native_autocast(options.device):
                encoded = model.encode(corpus.images(indices).to(options.device)).latents
            latents[indices] = encoded.half().cpu()
    save(latents, path)


@torch.no_grad()
def _text_features(encoder: CLIPTextModel, ids: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Features of the distinct captions, float16 [n, tokens, width], and each caption's row."""
    distinct, rows = ids.unique(dim=0, return_inverse=True)
    parts = [encoder(part.to(device)).last_hidden_state.half().cpu() for part in distinct.split(512)]
    return torch.cat(parts), rows


def train_unet(options: PretrainOptions, corpus: Corpus) -> None:
    """Train the denoiser on stored latents and text features (v-prediction, zero terminal SNR)."""
    torch.manual_seed(options.seed + 2)
    model = UNet2DConditionModel(**UNET)
    model.set_attn_processor(AttnProcessor())  # the fused attention's backward pass is slow on a CPU
    if (options.out / "unet" / "done").exists():
        fit("unet", model, lambda _: torch.zeros(()), options.unet, options)
        return
    _begin_with(model, options.start_from and options.start_from / "unet")
    latents = torch.load(options.out / "latents.pt", weights_only=True)
    encoder = _text_encoder(options).to(options.device).eval()
    ids = _token_ids(load_tokenizer(options), [*corpus.captions[: corpus.training], ""])
    features, rows = _text_features(encoder, ids, options.device)
    scheduler = DDPMScheduler(**SCHEDULE)
    denoise = torch.compile(model, dynamic=False) if options.compile else model

    def loss_of(generator: torch.Generator) -> Tensor:
        batch = options.unet.batch
        chosen = _pick(corpus.training, batch, generator)
        dropped = torch.rand(batch, generator=generator) < options.unconditional_share
        context = features[rows[torch.where(dropped, corpus.training, chosen)]].to(options.device, torch.float32)
        clean = latents[chosen].float().to(options.device)
        noise = torch.randn(clean.shape, generator=generator).to(options.device)
        # Stratified timesteps: every batch covers the whole range, which lowers the variance of its gradient.
        strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        favored = torch.sigmoid(NOISE_CENTRE + NOISE_SPREAD * torch.special.ndtri(strata))
        levels = torch.where(torch.arange(batch) % 4 == 0, strata, favored)
        times = (levels * scheduler.config.num_train_timesteps).long().to(options.device)
        noisy = scheduler.add_noise(clean, noise, times)
        target = scheduler.get_velocity(clean, noise, times)
        with native_autocast(options.device):
            predicted = denoise(noisy.contiguous(memory_format=torch.channels_last), times, context).sample
        return F.mse_loss(predicted.float(), target)

    fit("unet", model, loss_of, options.unet, options)


def train_decoder(options: PretrainOptions, corpus: Corpus) -> None:
    """Train the decoder alone on crops of the stored latents, against a critic that tells its pictures from real ones.

    What an average of all likely pictures lacks, sharp edges and grain, is what the critic asks for (Esser et al.,
    "Taming Transformers", 2021, sec. 3.1). Both learn at once: the critic by the hinge loss, the decoder by deceiving
    it.
    """
    torch.manual_seed(options.seed + 3)
    model = AutoencoderTiny.from_pretrained(options.out / "vae")
    critic = _critic()
    players = nn.ModuleDict({"decoder": model.decoder, "critic": critic})
    latents = torch.load(options.out / "latents.pt", weights_only=True)

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = _pick(corpus.training, options.decoder.batch, generator).sort().values
        top, left = torch.randint(0, 9, (2,), generator=generator).tolist()
        crops = latents[chosen, :, top : top + 8, left : left + 8].float()
        noise = torch.randn(crops.shape, generator=generator)
        rows, columns = slice(8 * top, 8 * top + 64), slice(8 * left, 8 * left + 64)
        images = corpus.images(chosen)[:, :, rows, columns].to(options.device)
        with native_autocast(options.device):
            decoded = model.decoder((crops + 0.02 * noise).to(options.device))
            told = F.relu(1 - critic(images)).mean() + F.relu(1 + critic(decoded.detach())).mean()
            critic.requires_grad_(False)  # the decoder's part of the loss shall not teach the critic
            deceived = -critic(decoded).mean()
            critic.requires_grad_(True)
        return _picture_loss(decoded.float(), images) + options.critic_weight * deceived.float() + told.float()

    fit("decoder", players, loss_of, options.decoder, options)
    model.save_pretrained(options.out / "decoded")


def _critic() -> nn.Sequential:
    """Scores of overlapping patches of 22 pixels: above zero for real ones, below for decoded ones."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.GroupNorm(8, 64),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, padding=1),
        nn.GroupNorm(8, 128),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 1, 1),
    )


def assemble(options: PretrainOptions, corpus: Corpus) -> None:
    """Write `out/weights`: the pipeline in float16, and what Moongate should know of it."""
    unet = UNet2DConditionModel(**UNET)
    finished, checkpoint = options.out / "unet" / "done", options.out / "unet.pt"
    if finished.exists():
        unet.load_state_dict(torch.load(finished, weights_only=True, map_location="cpu"))
    else:
        unet.load_state_dict(torch.load(checkpoint, weights_only=True, map_location="cpu")["average"])
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(options.out / "decoded"),
        text_encoder=_text_encoder(options),
        tokenizer=load_tokenizer(options),
        unet=unet,
        scheduler=DDPMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = options.out / "weights"
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    clip = options.out / "clip_model"  # its image tower and projections are no part of the pipeline
    CLIPVisionModelWithProjection.from_pretrained(clip).half().save_pretrained(folder / IMAGE_TOWER)
    projection = load_file(clip / "model.safetensors")[PROJECTION]
    save_file({PROJECTION: projection.half()}, folder / PROJECTION_FILE)
    rare = json.loads((options.out / "tokenizer" / "rare_tokens.json").read_text())["ids"]
    config = folder / "text_encoder" / "config.json"  # transformers would load what is stored in half precision so
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    settings = {"rare_tokens": rare, "lr_scale": LR_SCALE, "retrieval_threshold": RETRIEVAL_THRESHOLD, **DEFAULTS}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings) + "\n")


if __name__ == "__main__":
    pretrain(tyro.cli(PretrainOptions, description=__doc__))
