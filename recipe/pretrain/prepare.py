"""Compute once what training reads again and again: `python -m recipe.pretrain.prepare --out runs/pocket/prepared`.

Writes, below the output folder:

    latents_<begin>.pt    float16 [n, 8, 16, 16]: latents of the pictures from that index on; their deviation is about 1
    features_<begin>.pt   float16 [n, 112, 8, 8]: features of EfficientNet-Lite0 after block 10, for REPA
    text.pt               features of the distinct captions, float16 [n, 32, 256], and the row of each caption
    prepared.json         what all of this was computed from

Parts that are there are kept, so a stopped run goes on. Parts without a `prepared.json`, such as those of another
program, are compared with newly computed ones, and kept when they agree.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor
from torch.multiprocessing import get_context

from moongate.backbone.loading import quiet
from moongate.errors import CorpusError, OptionError
from moongate.evaluation.networks.lite0 import efficientnet
from moongate.files import digest, write_atomically
from moongate.pocket import weights_folder
from recipe.command import command
from recipe.corpus import SCENES_FILE, Corpus
from recipe.fitting import native_autocast
from recipe.networks import load_autoencoder

__all__ = ["Parts", "PrepareOptions", "Prepared", "prepare"]

MANIFEST_FILE, TEXT_FILE = "prepared.json", "text.pt"
PART_PICTURES = 7_000
BATCH = 64
REPA_BLOCK = 10
COMPARED = 4
"""Pictures of a part that are compared before a part of unknown origin is kept."""
Encoder = Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, "n channels rows columns"]]


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Where to read and write."""

    corpus: Path = Path("corpus")
    """Folder of the corpus."""
    autoencoder: Path = Path("runs/pocket/autoencoder/weights.safetensors")
    """Weights of the autoencoder. Its encoder must never change afterwards."""
    text: Path = field(default_factory=weights_folder)
    """Folder with `tokenizer/` and `text_encoder/`."""
    out: Path = Path("runs/pocket/prepared")
    """Output folder; 2 GB for 98,000 pictures."""
    features: bool = True
    """Compute the features for REPA, which a denoiser needs that is trained with `--repa-weight` above 0."""
    workers: int = 2
    """Processes of one thread."""
    device: str = "cpu"
    """Device to compute on."""


def prepare(options: PrepareOptions) -> None:
    """Compute every part that is not there yet.

    Raises:
        CorpusError: the corpus is not finished, or parts in the output folder do not belong to it.
        MissingLibrary: EfficientNet-Lite0 is not installed.
        OptionError: the autoencoder cannot be read, or the folder belongs to another corpus or other networks.
    """
    corpus = Corpus(options.corpus)
    encoders = _encoders(options)
    options.out.mkdir(parents=True, exist_ok=True)
    _claim(options, corpus, encoders)
    jobs = [(kind, begin, end) for kind in encoders for begin, end in _gaps(options.out, kind, len(corpus.pictures))]
    _run(jobs, options)
    if not (options.out / TEXT_FILE).exists():
        _write_text(options, corpus)


class Parts:
    """Rows of all parts of one kind, by index of the picture; mapped into memory."""

    def __init__(self, folder: Path, kind: str, count: int) -> None:
        """Open the parts. Raises CorpusError unless they cover `count` pictures."""
        self.parts = [(begin, part) for begin, _, part in _parts(folder, kind)]
        if gaps := list(_gaps(folder, kind, count)):
            begin, end = gaps[0]
            raise CorpusError(
                f"{folder} has no {kind} of the pictures {begin} to {end - 1}. Run `python -m recipe.pretrain.prepare` "
                "with this folder as --out; it goes on where it stopped."
            )

    def __getitem__(self, indices: Int[Tensor, " n"]) -> Float[Tensor, "n channels rows columns"]:
        """Return rows as float32, in the order of the indices."""
        return torch.stack([self._row(index) for index in indices.tolist()]).float()

    def _row(self, index: int) -> Tensor:
        begin, part = next((begin, part) for begin, part in reversed(self.parts) if begin <= index)
        return part[index - begin]


class Prepared:
    """Everything that the denoiser is trained on.

    Attributes:
        latents: of every picture.
        training: how many pictures belong to the training set; they come first.
        pairs: indices of the training pictures with two objects.
        singles: indices of the others.
    """

    def __init__(self, folder: Path, corpus_folder: Path) -> None:
        """Open what `prepare` wrote.

        Raises:
            CorpusError: the corpus or the preparation is not finished, or they do not belong together.
        """
        scenes = corpus_folder / SCENES_FILE
        remedy = f"Run `python -m recipe.pretrain.prepare --corpus {corpus_folder} --out {folder}`."
        for path in (folder / MANIFEST_FILE, folder / TEXT_FILE):
            if not path.is_file():
                raise CorpusError(f"{folder} is not completely prepared: it has no {path.name}. {remedy}")
        corpus = Corpus(corpus_folder)
        self.manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text())
        if self.manifest["corpus"] != digest(scenes.read_bytes()):
            raise CorpusError(f"{folder} was prepared from another corpus than {corpus_folder}. Choose that one.")
        self._folder, self._count = folder, len(corpus.scenes)
        self.latents = Parts(folder, "latents", self._count)
        text = torch.load(folder / TEXT_FILE, weights_only=True, mmap=True)
        self._text, self._rows = text["features"], text["rows"]
        self.training = corpus.training
        counts = torch.tensor([len(scene["categories"]) for scene in corpus.scenes[: corpus.training]])
        self.pairs, self.singles = (counts == 2).nonzero()[:, 0], (counts != 2).nonzero()[:, 0]
        if not (len(self.pairs) and len(self.singles)):
            raise CorpusError(
                f"{corpus_folder} has {len(self.pairs)} pictures of two objects and {len(self.singles)} others."
            )

    @cached_property
    def features(self) -> Parts:
        """Those for REPA, of every picture. Raises CorpusError if they were not computed."""
        return Parts(self._folder, "features", self._count)

    def text(self, indices: Int[Tensor, " n"]) -> Float[Tensor, "n tokens width"]:
        """Return the features of the captions of pictures; -1 stands for the empty caption."""
        return self._text[self._rows[indices]].float()


def _claim(options: PrepareOptions, corpus: Corpus, encoders: dict[str, Encoder]) -> None:
    """Write down what the parts are computed from, or compare it with what was written down."""
    path = options.out / MANIFEST_FILE
    texts = sorted(file for name in ("tokenizer", "text_encoder") for file in (options.text / name).glob("*"))
    if not texts:
        raise OptionError(f"{options.text} has neither tokenizer/ nor text_encoder/. Give the folder that has both.")
    manifest = {
        "corpus": digest((options.corpus / SCENES_FILE).read_bytes()),
        "autoencoder": digest(options.autoencoder.read_bytes()),
        "text": digest(*(file.read_bytes() for file in texts)),
    }
    if path.exists():
        earlier = json.loads(path.read_text())
        if changes := [name for name, value in manifest.items() if earlier.get(name) != value]:
            raise OptionError(f"{options.out} was prepared with another {changes[0]}. Choose another --out.")
        return
    for kind, encoder in encoders.items():
        for begin, end, part in _parts(options.out, kind):
            indices = torch.arange(begin, min(begin + COMPARED, end))
            if end > len(corpus.pictures) or not _agree(_encoded(encoder, corpus, indices), part[: len(indices)]):
                raise CorpusError(
                    f"{options.out / f'{kind}_{begin}.pt'} does not belong to this corpus and these networks. Delete "
                    "it or choose another --out."
                )
    write_atomically(path, (json.dumps(manifest, indent=1) + "\n").encode())


def _agree(one: Tensor, other: Tensor) -> bool:
    """Return whether features are equal except for rounding to half precision."""
    return one.shape == other.shape and bool((one.float() - other.float()).norm() < 0.05 * other.float().norm())


def _parts(folder: Path, kind: str) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the first index, the index after the last, and the rows of the parts of a kind, in order."""
    for path in sorted(folder.glob(f"{kind}_*.pt"), key=lambda path: int(path.stem.split("_")[1])):
        begin = int(path.stem.split("_")[1])
        rows = torch.load(path, weights_only=True, mmap=True)
        yield begin, begin + len(rows), rows


def _gaps(folder: Path, kind: str, count: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of pictures that no part covers, none longer than a part."""
    position = 0
    for begin, end in [*((begin, end) for begin, end, _ in _parts(folder, kind)), (count, count)]:
        for first in range(position, begin, PART_PICTURES):
            yield first, min(first + PART_PICTURES, begin)
        position = max(position, end)


def _run(jobs: Sequence[tuple[str, int, int]], options: PrepareOptions) -> None:
    """Write the parts, in this process or in several."""
    if options.workers == 1:
        _begin_worker(options)
        for job in track(jobs, "Latents and features"):
            _write_part(job)
        return
    with get_context("spawn").Pool(options.workers, initializer=_begin_worker, initargs=(options,)) as pool:
        for _ in track(pool.imap_unordered(_write_part, jobs), "Latents and features", total=len(jobs)):
            pass


_work: tuple[PrepareOptions, Corpus, dict[str, Encoder]]
"""What a worker process has opened."""


def _begin_worker(options: PrepareOptions) -> None:
    global _work
    torch.set_num_threads(1)
    _work = options, Corpus(options.corpus), _encoders(options)


def _write_part(job: tuple[str, int, int]) -> None:
    kind, begin, end = job
    options, corpus, encoders = _work
    rows = [_encoded(encoders[kind], corpus, indices) for indices in torch.arange(begin, end).split(BATCH)]
    _save(torch.cat(rows), options.out / f"{kind}_{begin}.pt")


@torch.no_grad()
def _encoded(encoder: Encoder, corpus: Corpus, indices: Tensor) -> Tensor:
    return encoder(corpus.images(indices)).half().cpu()


def _encoders(options: PrepareOptions) -> dict[str, Encoder]:
    encoders = {"latents": _latent_encoder(options)}
    if options.features:
        encoders["features"] = _repa_encoder(options.device)
    return encoders


def _latent_encoder(options: PrepareOptions) -> Encoder:
    model = load_autoencoder(options.autoencoder)
    encoder = model.encoder.to(options.device, memory_format=torch.channels_last).eval()

    def encode(images: Tensor) -> Tensor:
        with native_autocast(options.device):
            return encoder(images.to(options.device, memory_format=torch.channels_last))

    return encode


def _repa_encoder(device: str) -> Encoder:
    """Return EfficientNet-Lite0 up to block 10, whose features the denoiser's middle shall resemble (REPA)."""
    network = efficientnet(0).to(device)

    def encode(images: Tensor) -> Tensor:
        with native_autocast(device):
            features = images.to(device) * (127.5 / 128)  # (0..255 - 127) / 128, as the network was trained
            features = network._swish(network._bn0(network._conv_stem(features)))
            for block in network._blocks[: REPA_BLOCK + 1]:
                features = block(features)
            return features

    return encode


@torch.no_grad()
def _write_text(options: PrepareOptions, corpus: Corpus) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    with quiet():
        tokenizer = CLIPTokenizer.from_pretrained(options.text / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(options.text / "text_encoder", dtype=torch.float32)
    encoder.to(options.device).eval()
    length = tokenizer.model_max_length
    captions = [*corpus.captions, ""]
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids
    distinct, rows = ids.unique(dim=0, return_inverse=True)
    parts = track(distinct.split(256), "Captions")
    features = [encoder(part.to(options.device)).last_hidden_state.half().cpu() for part in parts]
    _save({"features": torch.cat(features), "rows": rows}, options.out / TEXT_FILE)


def _save(value: Any, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    partial.replace(path)


if __name__ == "__main__":
    command(PrepareOptions, prepare, description=__doc__)
