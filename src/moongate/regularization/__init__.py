"""Where regularization pictures come from: retrieved, from pocket's pool, generated, a folder, or none (Sec. 3.1).

`auto` resolves in this order: what the method requires (DreamBooth generates its pictures), a collection if one is
given, what the model's `moongate.json` names, and otherwise generated pictures.

Pocket names the pool. From the pool, pictures whose captions name the category are taken, not those nearest by text
features: of the captions nearest to "photo of a dog" and the like, one in four shows the subject
(`benchmarks/retrieval.py`), because captions with a place are nearer to each other than to a category alone.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moongate import pocket
from moongate.backbone import Backbone
from moongate.data import PRESETS, Preset, Regularization
from moongate.data.pictures import read_picture
from moongate.errors import BackboneError, CollectionError, OptionError
from moongate.evaluation.networks.clip import Clip
from moongate.files import exists, file_name, write_atomically
from moongate.limits import check_count
from moongate.pocket import POOL
from moongate.regularization.collection import Collection
from moongate.regularization.retrieval import RetrieveOptions, already_retrieved, check_threshold, retrieve
from moongate.sampling import draw_missing
from moongate.training.method import Method

__all__ = ["CHOICES", "Chosen", "RegularizationOptions", "choose"]

CHOICES = ("auto", "retrieved", POOL, "generated", "none")
"""Names that may stand in place of a folder."""


@dataclass(frozen=True, kw_only=True)
class RegularizationOptions:
    """Which regularization pictures, and how many."""

    choice: str = "auto"
    """One of `CHOICES`, or a folder of pictures."""
    count: int = 200
    """Largest number of pictures; the paper takes 200."""
    collection: str | None = None
    """The collection to retrieve from: a folder or an address in object storage."""
    threshold: float | None = None
    """Least similarity of a caption that is retrieved; by default what suits the text encoder."""

    def __post_init__(self) -> None:
        check_count("regularization-count", self.count)
        check_threshold(self.threshold)
        if self.choice not in CHOICES and not (self.choice and exists(Path(self.choice))):
            raise OptionError(
                f"There is no picture or folder {self.choice or repr('')} to regularize with. Give one, or "
                f"{', '.join(CHOICES)}."
            )

    @property
    def is_retrieved(self) -> bool:
        """Whether pictures are searched for by caption, as `auto` does when there is a collection."""
        return self.choice == "retrieved" or (self.choice == "auto" and self.collection is not None)

    def resolved(self, backbone: Backbone, method: Method | None = None) -> str:
        """Return what `auto` means for a model and a method; any other choice stays as it is.

        Raises:
            BackboneError: The model's `moongate.json` names an unknown choice.
        """
        if method and not method.prior_weight:
            return "none"
        if self.choice != "auto":
            return self.choice
        if method and method.generates_prior:
            return "generated"
        if self.collection is not None:
            return "retrieved"
        preferred = backbone.settings.regularization or "generated"
        if preferred not in CHOICES[1:]:
            raise BackboneError(
                f"The moongate.json of {backbone.name!r} names the regularization {preferred!r}. Known: "
                f"{', '.join(CHOICES[1:])}."
            )
        return preferred


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """The outcome of a choice."""

    source: str
    """One of `CHOICES` without "auto", or the folder."""
    pictures: Regularization | None
    """None for the source "none"."""
    notes: tuple[str, ...] = ()
    """Lines for people: what was retrieved and what was skipped."""


def choose(
    backbone: Backbone,
    category: str,
    *,
    folder: Path,
    options: RegularizationOptions | None = None,
    method: Method | None = None,
    preset: Preset = PRESETS["object"],
    resumes: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda _stage, _done, _wanted: None,
) -> Chosen:
    """Return regularization pictures of a category.

    Args:
        backbone: The model to be trained, with no concept applied.
        category: The category of the subject, such as "teddy bear".
        folder: Where generated and retrieved pictures are kept. What is there already is not made again, but pictures
            are retrieved again after captions were added to the collection.
        options: Which pictures, and how many.
        method: The training method, which may need none, or generated ones.
        preset: Its caption is the prompt of generated pictures and the query of retrieved ones.
        resumes: Whether a run continues, which keeps the pictures that it began with.
        on_progress: Called with "Generating" or "Retrieving", the number of pictures done and the number wanted.

    Raises:
        OptionError: An option does not fit.
        CollectionError: There is no collection, another encoder made it, or no caption is near enough.
        PictureError: The pool or the folder has no picture that fits.
    """
    options = options or RegularizationOptions()
    source = options.resolved(backbone, method)
    for name, value in (("collection", options.collection), ("threshold", options.threshold)):
        if value is not None and source != "retrieved":
            raise OptionError(
                f"The {name} {value} would be ignored, because regularization pictures are not retrieved here "
                f"({source}). Leave it out, or choose retrieved."
            )
    prompt = preset.describe(category)
    notes: tuple[str, ...] = ()
    if source == "none":
        return Chosen(source=source, pictures=None)
    if source == "generated":
        pictures = _generated(backbone, prompt, options.count, folder, on_progress)
    elif source == "retrieved":
        notes = _retrieve(backbone, prompt, folder / source, options, resumes, on_progress)
        pictures = Regularization.load(folder / source, category=category, at_most=options.count)
    elif source == POOL:
        pool = pocket.pool_folder()
        pictures = Regularization.load(pool, category=category, only_category=True, at_most=options.count)
    else:
        pictures = Regularization.load(source, category=category, at_most=options.count, preset=preset)
    return Chosen(source=source, pictures=pictures, notes=notes)


def _generated(
    backbone: Backbone, prompt: str, count: int, folder: Path, on_progress: Callable[[str, int, int], None]
) -> Regularization:
    """Draw what is missing of `count` pictures of a prompt, and return all of them.

    A listing with their captions makes their folder one that can be given as a choice.
    """
    paths = draw_missing(
        backbone,
        [prompt] * count,
        seeds=range(count),
        folder=folder / file_name(prompt),
        on_picture=lambda done, wanted: on_progress("Generating", done, wanted),
    )
    rows = [json.dumps({"file_name": path.name, "caption": prompt}) + "\n" for path in paths]
    write_atomically(paths[0].with_name("metadata.jsonl"), "".join(rows).encode())
    pictures = tuple(read_picture(path) for path in paths)
    return Regularization(pictures=pictures, captions=(prompt,) * count, source="generated")


def _retrieve(
    backbone: Backbone,
    query: str,
    out: Path,
    options: RegularizationOptions,
    resumes: bool,
    on_progress: Callable[[str, int, int], None],
) -> tuple[str, ...]:
    """Retrieve pictures into `out` unless they are there, and return the notes about it."""
    if options.collection is None and backbone.settings.regularization != POOL:
        raise CollectionError(
            "There is no collection to retrieve from. Make one with `moongate retrieve index SOURCE --out FOLDER` and "
            "name it with --collection, or take --regularization generated."
        )
    collection = Collection.open(options.collection) if options.collection else None
    clip = Clip.of_backbone(backbone)
    if collection is not None and collection.made_by_clip:
        clip = Clip.load(collection.encoder_name, downloads=False)
    retrieve_options = RetrieveOptions(
        threshold=clip.threshold if options.threshold is None else options.threshold,
        count=options.count,
        side_px=backbone.resolution_px,
    )
    if already_retrieved(
        query, clip=clip, collection=collection, out=out, options=retrieve_options, of_any_size=resumes
    ):
        return ()
    retrieved = retrieve(
        query,
        clip=clip,
        collection=collection,
        out=out,
        options=retrieve_options,
        on_progress=lambda done: on_progress("Retrieving", done, options.count),
    )
    return (*retrieved.skipped.notes, f"Retrieved {retrieved}")
