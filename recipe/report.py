"""Measure pocket: `python -m moongate.pocket.report --corpus corpus --out docs/results`.

Fixed prompts are drawn with fixed seeds. A classifier trained on the corpus alone, which never
sees the denoiser, tells whether the named objects, place and style are in the pictures. Beside
each figure stands how much it recognizes of real held-out pictures, as they are and as the
autoencoder gives them back, which is the most that a denoiser can reach. The pictures, and a newly
trained classifier, are kept below `--work`, so that a stopped run continues. The library never
imports this module.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from diffusers import StableDiffusionPipeline as Pipeline
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor

from moongate.backbone import Backbone
from moongate.data.pictures import as_tensor
from moongate.demo.recognizer import WIDTHS, Classes, Recognizer, recognized
from moongate.errors import OptionError
from moongate.evaluation.metrics import kid
from moongate.evaluation.networks.lite0 import lite0_features
from moongate.files import write_atomically
from moongate.pages import contact_sheet
from moongate.pocket import recognizer_file, weights_digest, weights_folder
from recipe.corpus import Corpus, scenes
from recipe.corpus.catalog import CATALOG, HELD_OUT_MODELS
from recipe.corpus.places import PLACES, PLAIN_COLORS
from recipe.fitting import Cosine, Stage, fit, native_autocast

BARS = {
    "autoencoder_psnr_db": (26.0, 30.0),
    "single_object_recognized": (0.70, 0.90),
    "both_objects_recognized": (0.35, 0.70),
    "place_recognized": (0.85, 0.97),
    "style_recognized": (0.80, 0.95),
}
"""What the weights must reach, and what they should reach for."""
ON_REAL, ON_DECODED = "_on_real_pictures", "_on_decoded_pictures"
GUIDANCE = 6.0
PROMPT_SEED = 0
PHOTO_SHARE = 0.6
"""Share of photos among the prompts for objects with a 3-D model, as in the corpus."""
SHEET_PICTURES, SHEET_COLUMNS = 64, 8
KID_PICTURES = 500
DRAWN_AT_ONCE, SEEN_AT_ONCE = 16, 100
CROP_PX = 112
PLAIN_PLACES = tuple(f"on {scenes.article(color)} background" for color in PLAIN_COLORS)
CLASSES = Classes(tuple(CATALOG), (*PLACES, *PLAIN_PLACES), scenes.STYLES)
CLASS_COUNTS = CLASSES.counts


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What to measure, against which corpus, and where to write."""

    corpus: Path = Path("corpus")
    weights: Path = field(default_factory=weights_folder)
    """Folder that `StableDiffusionPipeline.from_pretrained` loads."""
    out: Path = Path("docs/results")
    """Folder for `pocket.json` and `pocket.png`."""
    work: Path = Path("runs/report")
    """Folder for the classifier and the pictures; a later run takes from it what still holds."""
    prompts: int = 1000
    steps: int = 50
    """Denoising steps of a picture."""
    classifier_steps: int = 0
    """Train a new classifier for so many steps; with 0 the package's is the judge."""
    ship: Path | None = None
    """Folder to write the classifier into; the package's is `src/moongate/pocket/recognizer`."""
    device: str = "cpu"
    sheet_only: bool = False
    """Draw the pictures of the contact sheet and measure nothing."""

    def __post_init__(self) -> None:
        least = {"prompts": SHEET_PICTURES, "steps": 1, "classifier_steps": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise OptionError(f"{name} is {getattr(self, name)}; give at least {bound}.")
        if self.ship and not self.classifier_steps:
            raise OptionError("ship writes a newly trained classifier; give classifier_steps, for example 3000.")


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a picture shows, or should show."""

    categories: tuple[str, ...]
    place: str
    style: str

    @property
    def caption(self) -> str:
        """The corpus's caption of it, with no size, color or maker's name."""
        return f"{self.style} of {' and '.join(map(scenes.article, self.categories))} {self.place}"

    @property
    def classes(self) -> tuple[set[int], ...]:
        """The numbers of its categories, its place and its style in `CLASSES`."""
        named = zip(CLASSES, (self.categories, [self.place], [self.style]), strict=True)
        return tuple({known.index(name) for name in names} for known, names in named)


def report(options: ReportOptions) -> dict[str, float]:
    """Draw, measure, and write `pocket.png` and `pocket.json`; return what the latter holds."""
    device = options.device
    needed = None if options.sheet_only else (lite0_features(device), Corpus(options.corpus))
    pipeline = Pipeline.from_pretrained(options.weights, dtype=torch.float32).to(device)
    prompts = make_prompts(SHEET_PICTURES if options.sheet_only else options.prompts)
    captions = [content.caption for content in prompts]
    folder = options.work / f"pictures-{weights_digest(options.weights)}"
    drawn = draw(pipeline, captions, steps=options.steps, folder=folder)
    shown = slice(SHEET_PICTURES)
    sheet = contact_sheet(list(drawn[shown]), columns=SHEET_COLUMNS, labels=captions[shown])
    sheet.save(png := io.BytesIO(), format="PNG")
    write_atomically(options.out / "pocket.png", png.getvalue())
    if needed is None:
        return {}
    features, corpus = needed
    recognizer = train_recognizer(corpus, options) if options.classifier_steps else Recognizer.load().to(device)
    if options.ship:
        recognizer.save(options.ship / recognizer_file().name)
    backbone = Backbone(name="pocket", pipeline=pipeline)
    figures = {
        **measure(backbone, recognizer, features, corpus=corpus, drawn=drawn, prompts=prompts),
        "parameters": sum(weight.numel() for weight in pipeline.unet.parameters()),
        "shipped_bytes": shipped_bytes(options.weights),
        "prompts": options.prompts,
        "steps": options.steps,
    }
    write_atomically(options.out / "pocket.json", (json.dumps(figures, indent=1) + "\n").encode())
    Console().print(_table(figures))
    return figures


# --- prompts and pictures -------------------------------------------------------------------------


def make_prompts(count: int) -> list[Content]:
    """Return the first `count` of an endless, fixed list of what to draw.

    As in the corpus, every third holds two objects of one kind, and an object is asked for only
    in the kinds that the corpus shows it in. Categories come round equally often.
    """
    rng = np.random.default_rng(PROMPT_SEED)
    kinds = {category: _kinds(category) for category in CATALOG}
    two_every = round(1 / scenes.TWO_OBJECT_SHARE)
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
        filtered = rng.random() < scenes.FILTER_SHARE
        style = str(rng.choice(scenes.FILTERED_STYLES)) if filtered else kind
        place = str(rng.choice(PLAIN_PLACES if rng.random() < scenes.PLAIN_SHARE else PLACES))
        prompts.append(Content(categories=tuple(categories), place=place, style=style))
    return prompts


def _kinds(category: str) -> list[str]:
    """Return the kinds of pictures in which the corpus shows a category."""
    entry = CATALOG[category]
    modeled = ["photo"] if set(entry["models"]) - HELD_OUT_MODELS else []
    return modeled + (["drawing", "3d render"] if entry["drawings"] else [])


def draw(pipeline: Pipeline, captions: Sequence[str], *, steps: int, folder: Path) -> np.ndarray:
    """Draw caption number i with seed i; uint8 [n, height, width, 3].

    Every batch is kept in `folder`, and not drawn again.
    """
    pipeline.set_progress_bar_config(disable=True)

    def batch(numbered: Sequence[tuple[int, str]]) -> np.ndarray:
        recipe = json.dumps([steps, GUIDANCE, numbered])
        path = folder / f"{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.npy"
        if not path.exists():
            with native_autocast(str(pipeline.device)):
                pictures = pipeline(
                    [caption for _, caption in numbered],
                    num_inference_steps=steps,
                    guidance_scale=GUIDANCE,
                    generator=[torch.Generator().manual_seed(seed) for seed, _ in numbered],
                    output_type="np",
                ).images
            content = io.BytesIO()
            np.save(content, (pictures * 255).round().astype(np.uint8))
            write_atomically(path, content.getvalue())
        return np.load(path)

    return _in_batches("drawing", list(enumerate(captions)), batch, size=DRAWN_AT_ONCE)


# --- the classifier -------------------------------------------------------------------------------


def train_recognizer(corpus: Corpus, options: ReportOptions) -> Recognizer:
    """Train on the training pictures, or load what `options.work` holds."""
    torch.manual_seed(0)
    recognizer = Recognizer(CLASSES, WIDTHS)
    stage = Stage(batch=128, lr=3e-3, average_decay=1 - 10 / options.classifier_steps, device=options.device)
    truth = torch.stack([_target(_content(scene)) for scene in corpus.scenes[: corpus.training]])

    def losses(generator: torch.Generator, step: int) -> dict[str, Tensor]:
        chosen = torch.randint(0, corpus.training, (stage.batch,), generator=generator)
        chosen = chosen.sort().values  # the order in which the corpus returns images
        images = _augmented(corpus.images(chosen), generator).to(options.device)
        with native_autocast(options.device):
            scores = recognizer(images.contiguous(memory_format=torch.channels_last))
        both = scores.split(CLASS_COUNTS, 1), truth[chosen].to(scores).split(CLASS_COUNTS, 1)
        return dict(zip(Classes._fields, map(F.cross_entropy, *both), strict=True))

    digest = hashlib.sha256((options.corpus / "scenes.jsonl").read_bytes()).hexdigest()[:12]
    name = f"classifier-{options.classifier_steps}-{digest}"
    recognizer.to(options.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fit(recognizer, losses, Cosine(steps=options.classifier_steps), stage, folder=options.work / name)
    return recognizer.eval().requires_grad_(False)


def _content(scene: dict[str, Any]) -> Content:
    categories = tuple(scene["categories"])
    return Content(categories=categories, place=scene["place"], style=scene["style"])


def _target(content: Content) -> Float[Tensor, " classes"]:
    """Return 1 for a class that the picture shows, 1/2 for each of two categories, else 0."""
    target = torch.zeros(sum(CLASS_COUNTS))
    for part, classes in zip(target.split(CLASS_COUNTS), content.classes, strict=True):
        part[list(classes)] = 1 / len(classes)
    return target


def _augmented(images: Float[Tensor, "n 3 h w"], generator: torch.Generator) -> Tensor:
    """Crop each image at a random corner, and mirror about half of them."""
    slack = images.shape[-1] - CROP_PX + 1
    corners = torch.randint(0, slack, (len(images), 2), generator=generator).tolist()
    pairs = zip(images, corners, strict=True)
    crops = [image[:, y : y + CROP_PX, x : x + CROP_PX] for image, (y, x) in pairs]
    cropped = torch.stack(crops)
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, cropped.flip(-1), cropped)


def shares_recognized(scores: Tensor, contents: Sequence[Content]) -> dict[str, float]:
    """Return in what share of pictures the object, both objects, the place and the style are."""
    truth = zip(*(content.classes for content in contents), strict=True)
    objects, places, styles = map(recognized, scores.split(CLASS_COUNTS, 1), truth)
    two = torch.tensor([len(content.categories) == 2 for content in contents])
    return {
        "single_object_recognized": _mean(objects[~two], 4),
        "both_objects_recognized": _mean(objects[two], 4),
        "place_recognized": _mean(places, 4),
        "style_recognized": _mean(styles, 4),
    }


# --- measures -------------------------------------------------------------------------------------


def measure(
    backbone: Backbone,
    recognizer: Recognizer,
    features: Callable[[Tensor], Tensor],
    *,
    corpus: Corpus,
    drawn: np.ndarray,
    prompts: Sequence[Content],
) -> dict[str, float]:
    """Return every figure about pictures.

    The real pictures are the held-out ones whose captions, like the prompts, name no size; the
    autoencoder is measured on all held-out ones.
    """
    sizes = tuple(name for names in scenes.SIZE_PHRASES.values() for name in names if name)
    held_out = range(corpus.training, len(corpus.scenes))
    alike = [index for index in held_out if not corpus.captions[index].startswith(sizes)]
    real, contents = corpus.pictures[alike], [_content(corpus.scenes[index]) for index in alike]

    def fidelity_and_scores(images: Tensor) -> Tensor:
        decoded = backbone.decode_latents(backbone.encode_images(images))
        return torch.cat([psnr_db(decoded, images)[:, None], recognizer(decoded)], 1)

    def over(pictures: np.ndarray, function: Callable[[Tensor], Tensor], *, name: str) -> Tensor:
        def batch(part: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return function(as_tensor(part).to(backbone.device)).cpu().numpy()

        return torch.from_numpy(_in_batches(name, pictures, batch, size=SEEN_AT_ONCE))

    through = over(corpus.pictures[held_out.start :], fidelity_and_scores, name="autoencoder")
    psnr, decoded_scores = through[:, 0], through[:, 1:]
    shares = shares_recognized(over(drawn, recognizer, name="recognizing"), prompts)
    on_real = shares_recognized(over(real, recognizer, name="recognizing real ones"), contents)
    decoded = shares_recognized(decoded_scores[[index - held_out.start for index in alike]], contents)
    drawn_features = over(drawn[:KID_PICTURES], features, name="features")
    real_features = over(real[:KID_PICTURES], features, name="features of real ones")
    figures = {"autoencoder_psnr_db": _mean(psnr, 2)}
    for name, share in shares.items():
        figures |= {name: share, f"{name}{ON_REAL}": on_real[name], f"{name}{ON_DECODED}": decoded[name]}
    return figures | {"kid_x1000": round(1000 * kid(drawn_features, real_features), 3)}


def psnr_db(images: Float[Tensor, "n 3 h w"], references: Float[Tensor, "n 3 h w"]) -> Tensor:
    """Return each image's peak signal-to-noise ratio, [n]: 10 log10(2^2 / mean squared error)."""
    return 10 * torch.log10(4 / (images - references).square().mean((1, 2, 3)))


def shipped_bytes(weights: Path) -> int:
    """Return the size of the weights, and of the concepts, the pool and the recognizer beside them."""
    folders = (weights, *(weights.parent / name for name in ("concepts", "pool", "recognizer")))
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


def _mean(values: Tensor, digits: int) -> float:
    return round(values.double().mean().item(), digits)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f} of {task.total:.0f} pictures, {task.speed or 0:.1f}/s")


def _in_batches(name: str, items: Any, function: Callable[[Any], np.ndarray], *, size: int) -> np.ndarray:
    """Apply `function` to `size` items at a time, show how it gets on, and join the results."""
    with Progress("{task.description}", BarColumn(), _Rate(), TimeRemainingColumn()) as progress:
        task, results = progress.add_task(name, total=len(items)), []
        for first in range(0, len(items), size):
            results.append(function(items[first : first + size]))
            progress.advance(task, min(size, len(items) - first))
    return np.concatenate(results)


def _table(figures: dict[str, float]) -> Table:
    table = Table("pocket", "bar", "reach for", "measured", "on real pictures", "the same, decoded")
    for name, value in figures.items():
        if not name.endswith((ON_REAL, ON_DECODED)):
            bars = BARS.get(name, ())
            real, decoded = (str(figures.get(name + end, "")) for end in (ON_REAL, ON_DECODED))
            color = "red" if bars and value < bars[0] else ""
            measured = Text(f"{value:,}", color)
            bar, goal = map(str, bars or ("", ""))
            table.add_row(name.replace("_", " "), bar, goal, measured, real, decoded)
    return table


if __name__ == "__main__":
    report(tyro.cli(ReportOptions, description=__doc__))
