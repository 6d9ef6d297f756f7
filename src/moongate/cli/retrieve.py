"""The commands `moongate retrieve`, `retrieve index` and `tokens suggest`, on collections of captioned pictures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from moongate.cli.regularization import POOL, retrieve_into, say_skipped
from moongate.cli.terminal import load, progress_bar, say
from moongate.errors import BackboneError, OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.evaluation.networks.embedding import Encoder

__all__ = ["Retrieve", "RetrieveIndex", "TokensSuggest"]


@dataclass(frozen=True, kw_only=True)
class RetrieveIndex:
    """Make captioned pictures searchable: embed their captions into a collection. Run again, it goes on."""

    source: Annotated[str, tyro.conf.Positional]
    """A folder (metadata.jsonl, metadata.csv, or, in it or below, .tar shards, .parquet files, or pictures with a .txt
    beside each), one such file, or the id of a data set of the hub."""
    out: str
    """Folder of the collection, or an address in object storage such as s3://bucket/collection."""
    model: str = "pocket"
    """The model whose own text encoder embeds the captions."""
    encoder: str | None = None
    """A CLIP model to embed with instead: a folder in transformers' layout, or a model id of the hub."""
    pictures: bool = False
    """Embed the pictures too, with the image tower of --encoder."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
    device: str | None = None

    def __call__(self, console: Console) -> None:
        from moongate.regularization.collection import Collection
        from moongate.regularization.sources import Skipped, read_source

        encoder = _encoder(self.encoder, self.model, self.device, self.config)
        skipped = Skipped()
        with progress_bar(console) as progress:
            task = progress.add_task("Indexing", total=None, note="")
            collection = Collection.index(
                read_source(self.source, skipped),
                encoder,
                place=self.out,
                skipped=skipped,
                with_pictures=self.pictures,
                on_progress=lambda read: progress.update(task, completed=read),
            )
        say_skipped(console, skipped)
        say(console, f"{self.out} holds {len(collection)} captions, embedded by {encoder.name}.")


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """Fetch the pictures whose captions are nearest to a query, as regularization pictures for `moongate train`."""

    query: Annotated[str, tyro.conf.Positional]
    """What the captions should say, such as "photo of a teddy bear"."""
    source: Annotated[str, tyro.conf.arg(name="from")] = POOL
    """A collection made by `moongate retrieve index`, or pool: the pictures that come with pocket."""
    out: Path
    """Folder for the pictures, metadata.jsonl and retrieval.json."""
    count: int = 200
    threshold: float | None = None
    """Least similarity of a caption; 0.85 as in the paper, or what was measured for the model. Pictures, which are far
    less similar to a query than captions, have none unless it is given."""
    top_up: bool = False
    """Take pictures below the threshold where there are too few above it."""
    by: Literal["captions", "pictures"] = "captions"
    """What of the collection is compared with the query; pictures must have been indexed."""
    side: int = 512
    """Shorter side of the pictures in pixels; larger ones are shrunk."""
    model: str | None = None
    """The model whose text encoder made the collection; by default what the collection says."""
    encoder: str | None = None
    """The CLIP model that made it, where that lies elsewhere by now."""
    overwrite: bool = False
    """Replace the folder --out, if it came from here."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
    device: str | None = None

    def __call__(self, console: Console) -> None:
        from moongate.evaluation.networks.embedding import CLIP_THRESHOLD
        from moongate.regularization.collection import Collection
        from moongate.regularization.retrieval import MANIFEST, RetrieveOptions

        if self.out.exists() and not self.overwrite:
            raise OptionError(f"{self.out} exists already. Choose another --out, or allow --overwrite.")
        if self.out.exists() and not (self.out / MANIFEST).is_file():
            raise OptionError(f"{self.out} has no {MANIFEST}, so that it is not replaced. Choose another --out.")
        if not self.query.strip():
            raise OptionError('The query is empty. Say what the captions should say, such as "photo of a dog".')
        if self.source == POOL and self.by == "pictures":
            raise OptionError("The pool has no features of pictures. Search it by captions, or index it (--pictures).")
        options = RetrieveOptions(
            threshold=CLIP_THRESHOLD if self.threshold is None else self.threshold,
            count=self.count,
            side_px=self.side,
            tops_up=self.top_up,
            by=self.by,
        )
        collection = None if self.source == POOL else Collection.open(self.source)
        made_by = collection.encoder_name if collection else "pocket"
        clip = made_by if collection and collection.made_by_clip and not self.model else None
        try:
            encoder = _encoder(self.encoder or clip, self.model or made_by, self.device, self.config)
        except BackboneError as error:
            remedy = f"{self.source} was made with {made_by}; say where that is with --encoder (CLIP) or --model."
            raise BackboneError(f"{error} {remedy}") from error
        if self.threshold is None:
            options = replace(options, threshold=encoder.threshold if self.by == "captions" else -1.0)
        retrieve_into(self.out, self.query, collection, encoder, options=options, console=console)
        say(console, f"Train against them with --regularization {self.out}.")


@dataclass(frozen=True, kw_only=True)
class TokensSuggest:
    """List rarely used tokens, from which a new word may begin (paper, App. D), by counting over captions."""

    source: Annotated[str, tyro.conf.Positional]
    """Captions: any source that `moongate retrieve index` takes, or a .txt file with one caption in each line."""
    model: str = "pocket"
    """The model whose tokenizer counts."""
    occurrences: tuple[int, int] = (5, 10)
    """How often a token must occur at least and at most."""
    limit: int = 50
    """List at most so many."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
    device: str | None = None

    def __call__(self, console: Console) -> None:
        from moongate.backbone.rare_tokens import suggest
        from moongate.regularization.sources import Skipped, read_captions

        skipped = Skipped()
        backbone = load(self.model, self.device, "float32", self.config)
        found = suggest(backbone, read_captions(self.source, skipped), occurrences=self.occurrences)
        say_skipped(console, skipped)
        if not found:
            raise OptionError(
                f"No alphabetic token that is not part of another occurs {self.occurrences[0]} to "
                f"{self.occurrences[1]} times in {self.source}. Count over more captions, or widen --occurrences."
            )
        table = Table("id", "token", "count")
        for token in found[: self.limit]:
            table.add_row(str(token.id), token.text, str(token.count))
        console.print(table, markup=False)
        ids = [token.id for token in found[: self.limit]]
        say(console, f'To begin from them, write into moongate.json beside model_index.json: "rare_tokens": {ids}')


def _encoder(clip: str | None, model: str, device: str | None, config: Path | None) -> "Encoder":
    from moongate.evaluation.networks.embedding import Encoder

    if clip:
        place = str(Path(clip).absolute()) if Path(clip).is_dir() else clip  # found again from any folder
        return Encoder.load(place, device=device or "cpu")
    backbone: Backbone = load(model, device, "float32", config)
    return Encoder.of_backbone(backbone)
