"""Measure pocket: `python -m recipe.report --corpus corpus --out docs/results`.

Fixed prompts are drawn with fixed seeds, with the guidance that the model's own `moongate.json` names, and again with
the paper's. The recognizer, which was trained only on the corpus, counts the pictures that show the objects, the place
and the style of their prompt. For comparison, it counts the same in real held-out pictures, and in these as the
autoencoder returns them, which is the most that a denoiser can reach. All pictures stay below `--work`, so that a
stopped run goes on where it stopped.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor

from moongate.backbone import Backbone
from moongate.data.pictures import as_tensor, read_picture
from moongate.demo.recognizer import Recognizer
from moongate.errors import BackboneError, OptionError
from moongate.evaluation.metrics import kid
from moongate.evaluation.networks.lite0 import lite0_features
from moongate.files import check_writable, write_atomically
from moongate.pages import contact_sheet, png_bytes
from moongate.pocket import weights_digest, weights_folder
from moongate.sampling import SampleOptions, draw_missing
from recipe.command import command
from recipe.corpus import Corpus
from recipe.corpus import scenes as grammar
from recipe.corpus.catalog import CATALOG, HELD_OUT_MODELS
from recipe.corpus.places import PLACES
from recipe.fitting import native_autocast
from recipe.pretrain.assemble import TRAINING_FILE
from recipe.recognizer import PLAIN_PLACES, Content, held_out_without_size, shares_recognized

__all__ = ["ReportOptions", "make_prompts", "measure", "report"]

BARS = {
    "autoencoder_psnr_db": (29.0, 31.0),
    "single_object_recognized": (0.95, 0.98),
    "both_objects_recognized": (0.65, 0.80),
    "place_recognized": (0.96, 0.99),
    "style_recognized": (0.92, 0.96),
    "kid_x1000": (35.0, 15.0),
}
"""The value that must be reached and the one to reach for; of KID, lower is better."""
ON_REAL, ON_DECODED = "_on_real_pictures", "_on_decoded_pictures"
PAPER_GUIDANCE = 6.0
AT_PAPER_GUIDANCE = "_at_guidance_6"
PROMPT_SEED = 0
PHOTO_SHARE = 0.6
"""Share of photos among the prompts for objects with a 3-D model, in addition to chance, as in the corpus."""
SHEET_PICTURES, SHEET_COLUMNS = 64, 8
KID_PICTURES = 500
DRAWING_BATCH, BATCH = 16, 100


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What to measure, against which corpus, and where to write."""

    corpus: Path = Path("corpus")
    """Folder of the finished corpus."""
    weights: Path = field(default_factory=weights_folder)
    """Model folder; pocket's own unless given."""
    out: Path = Path("docs/results")
    """Folder for `pocket.json` and `pocket.png`."""
    work: Path = Path("runs/report")
    """Folder for the drawn pictures. A later run draws only those that are missing."""
    prompts: int = 1000
    """Number of prompts."""
    paper_prompts: int = 300
    """Number of prompts, the first ones, that are drawn once more at the paper's guidance of 6 where the model's own is
    another; drawing takes most of the time."""
    steps: int = 50
    """Denoising steps of a picture."""
    naming: Path | None = None
    """Folder for the contact sheet without labels and in shuffled order, and for the key to it, so that someone who has
    not seen the prompts can name the objects."""
    device: str = "cpu"
    """Device to compute on."""
    sheet_only: bool = False
    """Draw the contact sheet and measure nothing; this needs no corpus."""

    def __post_init__(self) -> None:
        for name, least in (("prompts", SHEET_PICTURES), ("paper_prompts", SHEET_PICTURES), ("steps", 1)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; give at least {least}.")


def report(options: ReportOptions) -> dict[str, float]:
    """Draw, measure, and write `pocket.png` and `pocket.json`.

    Returns:
        The content of `pocket.json`; nothing with `sheet_only`.

    Raises:
        MoongateError: The corpus, the weights, a library or an output folder cannot be used. This is found out before
            the first picture is drawn.
    """
    # Check everything that is needed.
    figures_file, sheet_file = options.out / "pocket.json", options.out / "pocket.png"
    for path in (figures_file, sheet_file):
        check_writable(path, overwrite=True)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{options.out} cannot be made a folder ({error.strerror}). Choose another --out.") from error
    needed = None
    if not options.sheet_only:
        needed = (Corpus(options.corpus), Recognizer.load().to(options.device), lite0_features(options.device))
        pictures_seen = _pictures_seen(options.weights)
    backbone = Backbone.load(options.weights, device=options.device)
    own_guidance = backbone.settings.guidance or PAPER_GUIDANCE

    # Draw.
    prompts = make_prompts(SHEET_PICTURES if options.sheet_only else options.prompts)
    drawn = draw(backbone, prompts, guidance=own_guidance, options=options)
    captions = [content.caption for content in prompts[:SHEET_PICTURES]]
    sheet = contact_sheet(list(drawn[:SHEET_PICTURES]), columns=SHEET_COLUMNS, labels=captions)
    write_atomically(sheet_file, png_bytes(sheet))
    if options.naming:
        _write_naming_sheet(drawn[:SHEET_PICTURES], prompts, options.naming)
    if needed is None:
        return {}
    count = len(prompts) if own_guidance == PAPER_GUIDANCE else options.paper_prompts
    paper = draw(backbone, prompts[:count], guidance=PAPER_GUIDANCE, options=options)

    # Measure.
    figures = {
        **measure(backbone, *needed, drawn=drawn, paper=paper, prompts=prompts),
        "guidance": own_guidance,
        "prompts": options.prompts,
        "prompts_at_guidance_6": len(paper),
        "steps": options.steps,
        "parameters": sum(weight.numel() for weight in backbone.unet.parameters()),
        "pictures_seen": pictures_seen,
        "shipped_bytes": shipped_bytes(options.weights),
    }
    write_atomically(figures_file, (json.dumps(figures, indent=1) + "\n").encode())
    Console().print(_table(figures))
    return figures


def _pictures_seen(weights: Path) -> int:
    """Return the number of pictures that the denoiser was trained on, repetitions included."""
    path = weights / TRAINING_FILE
    if not path.is_file():
        raise BackboneError(
            f"{weights} has no {TRAINING_FILE}, which says how many pictures the denoiser has seen. Write one: "
            '{"pictures_seen": 492000}.'
        )
    return int(json.loads(path.read_text())["pictures_seen"])


# --- prompts and pictures ---------------------------------------------------------------------------------------------


def make_prompts(count: int) -> list[Content]:
    """Return the first `count` of an endless, fixed list of what to draw.

    As in the corpus, about every third picture holds two objects of one kind, and an object is asked for only in the
    kinds that the corpus shows it in. Every category comes up equally often.
    """
    rng = np.random.default_rng(PROMPT_SEED)
    kinds = {category: _kinds(category) for category in CATALOG}
    two_every = round(1 / grammar.TWO_OBJECT_SHARE)
    queue: list[str] = []
    prompts = []
    for index in range(count):
        queue = queue or rng.permutation(list(CATALOG)).tolist()
        categories = [queue.pop()]
        kind = str(rng.choice(kinds[categories[0]]))
        if "photo" in kinds[categories[0]] and rng.random() < PHOTO_SHARE:
            kind = "photo"
        if index % two_every == two_every - 1:
            others = [name for name in kinds if name not in categories and kind in kinds[name]]
            categories.append(str(rng.choice(others)))
        filtered = rng.random() < grammar.FILTER_SHARE
        style = str(rng.choice(grammar.FILTERED_STYLES)) if filtered else kind
        place = str(rng.choice(PLAIN_PLACES if rng.random() < grammar.PLAIN_SHARE else PLACES))
        prompts.append(Content(categories=tuple(categories), place=place, style=style))
    return prompts


def _kinds(category: str) -> list[str]:
    """Return the kinds of pictures in which the corpus shows a category."""
    entry = CATALOG[category]
    modeled = ["photo"] if set(entry["models"]) - HELD_OUT_MODELS else []
    return modeled + (["drawing", "3d render"] if entry["drawings"] else [])


def draw(
    backbone: Backbone, prompts: Sequence[Content], *, guidance: float, options: ReportOptions
) -> UInt8[np.ndarray, "n height width 3"]:
    """Draw prompt number i with seed i, or read the picture that an earlier run drew."""
    folder = options.work / f"pictures-{weights_digest(options.weights)}"
    sampling = SampleOptions(steps=options.steps, guidance=guidance, batch=DRAWING_BATCH)
    captions = [content.caption for content in prompts]
    with _progress() as progress, native_autocast(options.device):
        task = progress.add_task(f"drawing at guidance {guidance:g}", total=len(captions))
        paths = draw_missing(
            backbone,
            captions,
            seeds=range(len(captions)),
            folder=folder,
            options=sampling,
            on_picture=lambda done, _: progress.update(task, completed=done),
        )
    return np.stack([read_picture(path) for path in paths])


def _write_naming_sheet(pictures: UInt8[np.ndarray, "n h w 3"], prompts: Sequence[Content], folder: Path) -> None:
    order = np.random.default_rng(PROMPT_SEED).permutation(len(pictures)).tolist()
    sheet = contact_sheet(
        [pictures[index] for index in order],
        columns=SHEET_COLUMNS,
        labels=[str(position + 1) for position in range(len(order))],
    )
    key = {str(position + 1): prompts[index].caption for position, index in enumerate(order)}
    write_atomically(folder / "unlabeled.png", png_bytes(sheet))
    write_atomically(folder / "key.json", (json.dumps(key, indent=1) + "\n").encode())


# --- measures ---------------------------------------------------------------------------------------------------------


def measure(
    backbone: Backbone,
    corpus: Corpus,
    recognizer: Recognizer,
    features: Callable[[Tensor], Tensor],
    *,
    drawn: UInt8[np.ndarray, "n height width 3"],
    paper: UInt8[np.ndarray, "n height width 3"],
    prompts: Sequence[Content],
) -> dict[str, float]:
    """Return every figure about pictures.

    Real pictures are the held-out ones whose captions, like the prompts, name no size. The autoencoder is measured on
    all held-out pictures.

    Args:
        backbone: The model whose autoencoder is measured.
        corpus: The corpus with the real pictures.
        recognizer: The judge.
        features: The network for KID; images in -1..1 to features.
        drawn: The pictures of the prompts at the model's own guidance.
        paper: The first of them at the paper's guidance.
        prompts: What the pictures should show.
    """
    alike = held_out_without_size(corpus)
    real, contents = corpus.pictures[alike], [Content.of(corpus.scenes[index]) for index in alike]

    def fidelity_and_scores(images: Tensor) -> Tensor:
        decoded = backbone.decode_latents(backbone.encode_images(images)).clamp(-1, 1)
        return torch.cat([psnr_db(decoded, images)[:, None], recognizer(decoded)], 1)

    def over(pictures: np.ndarray, function: Callable[[Tensor], Tensor], *, name: str) -> Tensor:
        return _in_batches(name, pictures, lambda part: function(part.to(backbone.device)).cpu())

    def shares(scores: Tensor, contents: Sequence[Content]) -> dict[str, float]:
        return shares_recognized(scores, contents, recognizer.classes)

    through = over(corpus.pictures[corpus.training :], fidelity_and_scores, name="autoencoder")
    decoded_scores = through[[index - corpus.training for index in alike], 1:]
    figures = {"autoencoder_psnr_db": round(through[:, 0].double().mean().item(), 2)}
    own = shares(over(drawn, recognizer, name="recognizing"), prompts)
    at_paper = shares(over(paper, recognizer, name="recognizing"), prompts[: len(paper)])
    on_real = shares(over(real, recognizer, name="recognizing real pictures"), contents)
    decoded = shares(decoded_scores, contents)
    for name, share in own.items():
        figures |= {
            name: share,
            f"{name}{AT_PAPER_GUIDANCE}": at_paper[name],
            f"{name}{ON_REAL}": on_real[name],
            f"{name}{ON_DECODED}": decoded[name],
        }
    real_features = over(real[:KID_PICTURES], features, name="features of real pictures")
    for ending, pictures in (("", drawn), (AT_PAPER_GUIDANCE, paper)):
        drawn_features = over(pictures[:KID_PICTURES], features, name="features")
        figures[f"kid_x1000{ending}"] = round(1000 * kid(drawn_features, real_features), 3)
    return figures


def psnr_db(images: Float[Tensor, "n 3 h w"], references: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Return the peak signal-to-noise ratio of each image in -1..1: 10 log10(2^2 / mean squared error)."""
    return 10 * torch.log10(4 / (images - references).square().mean((1, 2, 3)))


def shipped_bytes(weights: Path) -> int:
    """Return the size of the weights, and of the concepts, the pool and the recognizer in the folder around them."""
    folders = (weights, *(weights.parent / name for name in ("concepts", "pool", "recognizer")))
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


@torch.no_grad()
def _in_batches(name: str, pictures: np.ndarray, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `function` to batches of pictures, as floats in -1..1, and join the results."""
    results = []
    with _progress() as progress:
        task = progress.add_task(name, total=len(pictures))
        for first in range(0, len(pictures), BATCH):
            results.append(function(as_tensor(pictures[first : first + BATCH])))
            progress.update(task, completed=min(first + BATCH, len(pictures)))
    return torch.cat(results)


def _progress() -> Progress:
    count = TextColumn("{task.completed:.0f} of {task.total:.0f} pictures")
    return Progress(TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())


def _table(figures: dict[str, float]) -> Table:
    endings = ("", AT_PAPER_GUIDANCE, ON_REAL, ON_DECODED)
    table = Table("pocket", "bar", "reach for", "measured", "at guidance 6", "on real pictures", "the same, decoded")
    for name in [name for name in figures if not name.endswith(endings[1:])]:
        bar, goal = BARS.get(name, (None, None))
        cells = [f"{figures[name + ending]:,}" if name + ending in figures else "" for ending in endings]
        lower_is_better = bar is not None and goal is not None and goal < bar
        missed = bar is not None and (figures[name] > bar if lower_is_better else figures[name] < bar)
        bounds = ["" if bound is None else str(bound) for bound in (bar, goal)]
        table.add_row(name.replace("_", " "), *bounds, Text(cells[0], "red" if missed else ""), *cells[1:])
    return table


if __name__ == "__main__":
    command(ReportOptions, report, description=__doc__)
