"""Where regularization pictures come from: retrieved, shipped with pocket, drawn, or the user's own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from moongate.cli.subjects import CHOICES
from moongate.cli.terminal import progress_bar, say
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.data import Preset, Regularization
    from moongate.evaluation.networks.embedding import Encoder
    from moongate.regularization.collection import Collection
    from moongate.regularization.retrieval import RetrieveOptions
    from moongate.regularization.sources import Skipped

__all__ = ["POOL", "Wanted", "regularization_pictures", "retrieve_into", "say_skipped"]

POOL = "pool"
"""What stands for pocket's own pictures, which are few enough to be searched without an index."""
SAID_AT_MOST = 20

DRAWN_FROM = "generated.json"
"""What tells whether pictures that were drawn earlier are of the same model and prompt."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which regularization pictures: a choice (auto, retrieved, pool, generated) or a folder; how many, how near."""

    choice: str = "auto"
    count: int = 200
    collection: str | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise OptionError(f"regularization-count is {self.count}; it must be at least 1.")
        if self.choice not in CHOICES and not Path(self.choice).exists():
            raise OptionError(
                f"There is no picture or folder {self.choice} to regularize with. Give one, or {', '.join(CHOICES)}."
            )

    @property
    def is_retrieved(self) -> bool:
        """Whether they are searched for by caption, as `auto` does where there is a collection."""
        return self.choice == "retrieved" or (self.choice == "auto" and self.collection is not None)

    def resolved(self, backbone: "Backbone") -> str:
        """Return what `auto` stands for."""
        if self.is_retrieved:
            return "retrieved"
        if self.choice != "auto":
            return self.choice
        return backbone.settings.regularization or "generated"


def regularization_pictures(
    backbone: "Backbone", category: str, wanted: Wanted, *, preset: "Preset", folder: Path, console: Console
) -> "Regularization":
    """Return regularization pictures of a category; what is drawn or retrieved is kept in `folder`."""
    from moongate import pocket
    from moongate.data import Regularization

    choice, retrieved = wanted.resolved(backbone), folder / "retrieved"
    if choice == "generated":
        _draw(backbone, preset.describe(category), folder, wanted.count, console)
    elif choice == "retrieved":
        _retrieve(backbone, preset.describe(category), retrieved, wanted, console)
    kept = {POOL: pocket.pool_folder(), "generated": folder, "retrieved": retrieved}.get(choice, Path(choice))
    return Regularization.load(kept, category=category, only_category=choice == POOL, at_most=wanted.count)


def retrieve_into(
    out: Path,
    query: str,
    collection: "Collection | None",
    encoder: "Encoder",
    *,
    options: "RetrieveOptions",
    console: Console,
) -> None:
    """Write the nearest pictures of a collection, or of pocket's pool, into a folder and say what came of it.

    Raises CollectionError for another encoder's collection.
    """
    from moongate import pocket
    from moongate.regularization.collection import nearest
    from moongate.regularization.retrieval import retrieve
    from moongate.regularization.sources import Skipped, read_bytes, read_source

    if collection:
        collection.check(encoder)
    vector = encoder.captions([query])[0]
    records = read_source(str(pocket.pool_folder()), Skipped())
    hits = collection.search(vector, by=options.by) if collection else nearest(records, vector, encoder)
    with progress_bar(console) as progress:
        task = progress.add_task("Retrieving", total=options.count, note="")
        found = retrieve(
            hits,
            collection.read if collection else lambda record: read_bytes(record.picture),
            facts=_facts(query, collection, encoder),
            out=out,
            options=options,
            on_progress=lambda count: progress.update(task, completed=count),
        )
    say_skipped(console, found.skipped)
    say(console, f"Retrieved {found}")


def say_skipped(console: Console, skipped: "Skipped") -> None:
    """Print how many were skipped and why, and the first ones by name."""
    if skipped.counts:
        say(console, f"Skipped: {skipped}.", style="yellow")
    for name, _ in skipped.names[:SAID_AT_MOST]:
        say(console, f"  {name}")
    if (rest := skipped.counts.total() - SAID_AT_MOST) > 0:
        say(console, f"  and {rest} more")


def _retrieve(backbone: "Backbone", query: str, folder: Path, wanted: Wanted, console: Console) -> None:
    from moongate.regularization.collection import Collection
    from moongate.regularization.retrieval import RetrieveOptions, already_in

    if wanted.collection is None and backbone.settings.regularization != POOL:
        raise OptionError(
            "There is no collection to retrieve from. Make one with `moongate retrieve index SOURCE --out FOLDER` and "
            "name it with --collection, or take --regularization generated."
        )
    collection = Collection.open(wanted.collection) if wanted.collection else None
    encoder = _encoder_of(collection, backbone)
    threshold = encoder.threshold if wanted.threshold is None else wanted.threshold
    options = RetrieveOptions(threshold=threshold, count=wanted.count, side_px=backbone.resolution_px)
    if not already_in(folder, _facts(query, collection, encoder), options):
        retrieve_into(folder, query, collection, encoder, options=options, console=console)


def _facts(query: str, collection: "Collection | None", encoder: "Encoder") -> dict[str, str]:
    return {"query": query, "collection": collection.place if collection else POOL, "encoder": encoder.name}


def _encoder_of(collection: "Collection | None", backbone: "Backbone") -> "Encoder":
    """Return the CLIP model that made a collection, or the backbone's own text encoder."""
    from moongate.evaluation.networks.embedding import Encoder

    if collection and collection.made_by_clip:
        return Encoder.load(collection.encoder_name)
    return Encoder.of_backbone(backbone)


def _draw(backbone: "Backbone", prompt: str, folder: Path, count: int, console: Console) -> None:
    """Draw the missing ones of `count` pictures of a prompt, with their captions, into `folder`.

    Those of another prompt or model there are removed.
    """
    from PIL import Image

    from moongate.files import write_atomically
    from moongate.sampling import sample

    drawn_from = folder / DRAWN_FROM
    facts = json.dumps({"model": backbone.name, "fingerprint": backbone.fingerprint.short, "prompt": prompt}).encode()
    if not drawn_from.is_file() or drawn_from.read_bytes() != facts:
        for path in folder.glob("*.png"):
            path.unlink()
        write_atomically(drawn_from, facts)
    missing = [seed for seed in range(count) if not (folder / f"{seed:04d}.png").exists()]
    with progress_bar(console) as progress:
        task = progress.add_task(
            "Drawing regularization pictures", total=count, completed=count - len(missing), note=""
        )
        for drawn in sample(backbone, [prompt] * len(missing), seeds=missing):
            path = folder / f"{drawn.seed:04d}.png"
            path.with_suffix(".txt").write_text(prompt)
            partial = path.with_suffix(".partial")
            Image.fromarray(drawn.image).save(partial, format="PNG")
            partial.replace(path)
            progress.advance(task)
