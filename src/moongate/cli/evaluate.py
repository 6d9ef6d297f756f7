"""The command `moongate evaluate`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from moongate.cli.merge import gram_cache
from moongate.cli.terminal import open_concepts, progress_bar, say
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept
    from moongate.evaluation import Reference, Targets

__all__ = ["Evaluate"]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Judge a concept by pictures of many prompts, and write one record of every setting and figure."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Concept files of any format; several are merged in memory. None judges the model itself."""
    prompts: str | None = None
    """A set (object, animal, scene, pair, pocket, pocket-pair) or a file with one prompt in each line, {} for the
    thing. Default: object, or pair for two things; for pocket the sets that keep to words it knows."""
    count: int = 5
    """Pictures for each prompt, with the seeds seed, seed + 1, ..."""
    seed: int = 0
    pictures: tuple[Path, ...] = ()
    """A folder of pictures of each thing that were held out from training, in the concept's order."""
    training_pictures: tuple[Path, ...] = ()
    """Folders of the pictures trained on, as the paper compares with; they are named so in the record."""
    reference: Path | None = None
    """Folder of real pictures of the category with captions, for KID and FID."""
    features: tuple[str, ...] = ()
    """Networks: pocket-clip, efficientnet-lite0, clip, dino, inception:FILE; clip:FOLDER takes another model. Default:
    the first two for pocket, else clip and dino."""
    model: str | None = None
    """The model; the first concept's own, or pocket, by default."""
    config: Path | None = None
    """For a model in a single file: a folder in diffusers' layout that says what it is; it needs no weights."""
    steps: int = 50
    guidance: float = 6.0
    scheduler: str = "ddpm"
    batch: int = 8
    """Pictures drawn at once."""
    out: Path = Path("evaluation")
    """Folder for record.json and the pictures; what is there already is not drawn again."""
    device: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __call__(self, console: Console) -> None:
        from moongate.evaluation import EvaluationOptions, evaluate, load_network
        from moongate.files import write_atomically
        from moongate.sampling import SampleOptions

        sampling = SampleOptions(steps=self.steps, guidance=self.guidance, scheduler=self.scheduler, batch=self.batch)
        options = EvaluationOptions(count=self.count, seed=self.seed, sampling=sampling)
        if not (self.files or self.prompts):
            raise OptionError("Without a concept there is no usual set of prompts. Name a file with --prompts.")
        backbone, concepts = open_concepts(self.files, self.model, self.config, self.device, self.dtype, console)
        for file, concept in zip(self.files, concepts, strict=True):
            if not all(subject.category for subject in concept.subjects) or not concept.subjects:
                raise OptionError(
                    f"{file} does not say what its things are, without which prompts cannot be read. Give it class "
                    "words with `moongate convert FILE --to moongate --category WORD`."
                )
        things = sum(len(concept.subjects) for concept in concepts)
        prompts = self._prompts(backbone, things)
        comparisons = self._comparisons(concepts)
        chosen = self.features or backbone.settings.features or ("clip", "dino")
        networks = [load_network(name, device=str(backbone.device)) for name in chosen]
        with progress_bar(console) as progress:
            task = progress.add_task("Drawing", total=None, note="")

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            record = evaluate(
                backbone,
                _together(backbone, concepts),
                prompts,
                networks,
                folder=self.out / "pictures",
                comparisons=comparisons,
                options=options,
                on_picture=show,
            )
        record["files"] = [{"name": str(f), "hash": c.hash} for f, c in zip(self.files, concepts, strict=True)]
        write_atomically(self.out / "record.json", (json.dumps(record, indent=1) + "\n").encode())
        console.print(_table(record), markup=False)
        say(console, f"Wrote {self.out / 'record.json'}.")

    def _prompts(self, backbone: "Backbone", things: int) -> list[str]:
        from moongate.evaluation import read_prompts

        usual = backbone.settings.prompt_sets or ("object", "pair")
        return read_prompts(self.prompts or usual[things > 1])

    def _comparisons(self, concepts: "Sequence[Concept]") -> "list[Targets | Reference]":
        from moongate.data import Regularization, Subject
        from moongate.evaluation import Reference, Targets

        subjects = [subject for concept in concepts for subject in concept.subjects]
        found: list[Targets | Reference] = []
        kinds: dict[Literal["held out", "training"], tuple[Path, ...]]
        kinds = {"held out": self.pictures, "training": self.training_pictures}
        for kind, folders in kinds.items():
            if folders and len(folders) != len(subjects):
                raise OptionError(
                    f"{len(folders)} folders of {kind} pictures were given for {len(subjects)} things. Give one each."
                )
            for index, (folder, subject) in enumerate(zip(folders, subjects, strict=True) if folders else ()):
                pictures = Subject.load(folder, category=subject.category).pictures
                found.append(Targets(pictures=pictures, kind=kind, subject=index))
        if self.reference:
            category = subjects[0].category if subjects else "thing"
            real = Regularization.load(self.reference, category=category, at_most=1_000_000)
            found.append(Reference(pictures=real.pictures, captions=real.captions))
        return found


def _together(backbone: "Backbone", concepts: "Sequence[Concept]") -> "Concept | None":
    """Return the concept, several merged in memory, or None for none."""
    from moongate.merging import MergeOptions, merge

    if len(concepts) > 1:
        return merge(backbone, concepts, options=MergeOptions(cache=gram_cache())).concept
    return concepts[0] if concepts else None


def _table(record: dict[str, Any]) -> Table:
    table = Table(show_lines=True)
    for head in ("measure", "features", "compared with", "value", f"{record['intervals']['level']:.0%} interval"):
        table.add_column(head, overflow="fold")
    things = record["concept"]["things"] if record["concept"] else []
    for row in record["measures"]:
        other = f"{row['pictures']} pictures of {things[row['thing']]}" if "pictures" in row else ""
        between = f"{row['low']:.4f} to {row['high']:.4f}" if "low" in row else ""
        table.add_row(row["measure"], row["features"], other, f"{row['value']:.4f}", between)
    return table
