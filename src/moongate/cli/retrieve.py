"""The commands `moongate retrieve index` and `moongate retrieve search`, on collections of captioned pictures."""

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from moongate.cli.options import Flag, Model, ModelOptions, Name, OptionalFloat, OptionalStr, Output, OutputOptions
from moongate.cli.terminal import progress_bar, say, say_notes
from moongate.errors import BackboneError, OptionError
from moongate.pocket import POOL

if TYPE_CHECKING:
    from moongate.evaluation.networks.clip import Clip
    from moongate.regularization.collection import Collection
    from moongate.regularization.retrieval import RetrieveOptions

__all__ = ["RetrieveIndex", "RetrieveSearch"]


@dataclass(frozen=True, kw_only=True)
class RetrieveIndex:
    """Index captioned pictures, so that they can be searched."""

    source: Annotated[Name, tyro.conf.Positional]
    """Captioned pictures: a folder, one metadata.jsonl, metadata.csv, .tar or .parquet file, or a data set of the hub.
    A folder holds such files, at any depth, or pictures that each have a .txt file next to them."""
    out: Name
    """Folder of the collection, or an address in object storage such as s3://bucket/collection.
    An index that was interrupted there is continued."""
    encoder: OptionalStr = None
    """CLIP model to embed with instead of --model: a folder in transformers' layout, or a model id of the hub."""
    pictures: Flag = False
    """Embed the pictures too, with the image encoder of --encoder."""
    model: Model = field(default_factory=ModelOptions)
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.regularization.collection import Collection
        from moongate.regularization.sources import Skipped, begun, read_source

        Collection.check_place(self.out)
        if self.pictures and not self.encoder:
            raise OptionError(
                "--pictures needs a CLIP model with an image encoder. Name one with --encoder: pocket, a folder in "
                "transformers' layout, or a model id of the hub."
            )
        self.model.check()
        skipped = Skipped()
        records = begun(read_source(self.source, skipped), skipped)
        encoder = _encoder(self.encoder, self.model)
        with progress_bar(console) as progress:
            task = progress.add_task("Indexing", total=None, note="")
            collection = Collection.index(
                records,
                encoder,
                place=self.out,
                skipped=skipped,
                with_pictures=self.pictures,
                on_progress=lambda count: progress.update(task, completed=count),
            )
            progress.update(task, total=progress.tasks[0].completed)
        say_notes(console, skipped.notes)
        say(console, f"{self.out} holds {len(collection)} captions, embedded by {encoder.name}.")
        return {"out": self.out, "captions": len(collection), "encoder": encoder.name, "notes": list(skipped.notes)}


@dataclass(frozen=True, kw_only=True)
class RetrieveSearch:
    """Fetch the pictures whose captions are nearest to a query."""

    query: Annotated[str, tyro.conf.Positional]
    """What the captions should say, such as "photo of a teddy bear"."""
    source: Annotated[Name, tyro.conf.arg(name="from")] = POOL
    """Collection made by `moongate retrieve index`, or pool: the pictures that come with pocket."""
    out: Path
    """Folder for the pictures, metadata.jsonl and retrieval.json; `moongate train --regularization` takes it."""
    count: int = 200
    """Maximum number of pictures."""
    threshold: OptionalFloat = None
    """Minimum similarity. Default: 0.85 as in the paper, or the value measured for the model.
    With --by pictures there is no minimum by default, because pictures are less similar to a query than captions."""
    top_up: Flag = False
    """Fill up to --count with pictures below the threshold."""
    by: Literal["captions", "pictures"] = "captions"
    """What to compare with the query. Pictures need a collection that was indexed with --pictures."""
    side: int = 512
    """Shorter side of the pictures in pixels. Larger pictures are reduced to it."""
    encoder: OptionalStr = None
    """CLIP model that the collection was indexed with, if it has moved."""
    overwrite: Flag = False
    """Replace the folder --out, if this command wrote it."""
    model: Model = field(default_factory=ModelOptions)
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.regularization.collection import Collection
        from moongate.regularization.retrieval import retrieve

        self._check()
        options = self._options()
        collection = None if self.source == POOL else Collection.open(self.source)
        if collection is not None and self.by == "pictures":
            collection.check_pictures()
        encoder = self._encoder(collection)
        if self.threshold is None:
            options = replace(options, threshold=encoder.threshold if self.by == "captions" else -1.0)
        with progress_bar(console) as progress:
            task = progress.add_task("Retrieving", total=self.count, note="")
            retrieved = retrieve(
                self.query,
                clip=encoder,
                collection=collection,
                out=self.out,
                options=options,
                on_progress=lambda count: progress.update(task, completed=count),
            )
        say_notes(console, retrieved.skipped.notes)
        say(console, f"Retrieved {retrieved}")
        say(console, f"Train against them with --regularization {shlex.quote(str(self.out))}.")
        return {
            "out": str(self.out),
            "count": retrieved.count,
            "wanted": retrieved.wanted,
            "lowest": retrieved.lowest,
            "highest": retrieved.highest,
            "enough_at": retrieved.enough_at,
            "notes": list(retrieved.skipped.notes),
        }

    def _check(self) -> None:
        """Raise OptionError before a model is loaded or a folder is replaced."""
        from moongate.files import check_folder
        from moongate.regularization.retrieval import MANIFEST

        check_folder(self.out)
        if self.out.exists() and not self.overwrite:
            raise OptionError(f"{self.out} exists already. Choose another --out, or allow --overwrite.")
        if self.out.exists() and not (self.out / MANIFEST).is_file():
            raise OptionError(f"{self.out} has no {MANIFEST}, so it is not replaced. Choose another --out.")
        if not self.query.strip():
            raise OptionError('The query is empty. Say what the captions should say, such as "photo of a dog".')
        if self.source == POOL and self.by == "pictures":
            raise OptionError(
                "The pool has no features of pictures. Search it by captions, or index it with --pictures."
            )

    def _options(self) -> "RetrieveOptions":
        from moongate.regularization.retrieval import RetrieveOptions

        return RetrieveOptions(
            threshold=0.0 if self.threshold is None else self.threshold,  # replaced by that of the encoder
            count=self.count,
            side_px=self.side,
            tops_up=self.top_up,
            by=self.by,
        )

    def _encoder(self, collection: "Collection | None") -> "Clip":
        """Load the encoder that the collection was indexed with; pocket's for the pool."""
        name = "pocket" if collection is None else collection.encoder_name
        clip = name if collection is not None and collection.made_by_clip and not self.model.model else None
        try:
            return _encoder(self.encoder or clip, self.model, default=name, downloads=self.encoder is not None)
        except BackboneError as error:
            remedy = f"{self.source} was indexed with {name}; say where that is with --encoder (CLIP) or --model."
            raise BackboneError(f"{error} {remedy}") from error


def _encoder(clip: str | None, model: ModelOptions, *, default: str = "pocket", downloads: bool = True) -> "Clip":
    from moongate.evaluation.networks.clip import Clip

    if clip:
        path = str(Path(clip).absolute()) if Path(clip).is_dir() else clip  # a collection is searched from any folder
        return Clip.load(path, device=model.device or "cpu", downloads=downloads)
    return Clip.of_backbone(model.load(default=default))
