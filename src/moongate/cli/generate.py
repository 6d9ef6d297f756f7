"""The command `moongate generate`."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from moongate.cli.options import (
    WITHOUT_DEFAULT,
    Drawing,
    DrawingOptions,
    Dtype,
    Flag,
    Model,
    ModelOptions,
    OptionalInt,
    OptionalPath,
    Output,
    OutputOptions,
    Texts,
    cache_folder,
    flat,
    lines_of,
    read_concepts,
    split_strength,
)
from moongate.cli.terminal import progress_bar, say
from moongate.errors import ConceptFileError, OptionError, warn
from moongate.limits import check_count

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept
    from moongate.editing.regions import Region
    from moongate.merging.library import Entry
    from moongate.sampling import Sample, SampleOptions

__all__ = ["Generate"]

SHEET = "contact-sheet.png"
COMPARISON = "comparison.png"
SHEET_COLUMNS = 8
SHEET_PICTURES = 1000
"""Further pictures are left out of the contact sheet."""
SHEET_PIXELS = 32_000_000
"""Where the pictures of a contact sheet have more pixels together, they are shrunk, so that any number takes little
memory: a sheet of 32 pictures of 1024 x 1024 is not shrunk."""


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Draw pictures with any number of concepts."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, WITHOUT_DEFAULT] = ()
    """What to draw, such as "photo of a <bear> teddy bear on the beach"."""
    prompts_file: OptionalPath = None
    """Text file of further prompts, one per line. Lines that begin with # are left out."""
    concept: Texts = ()
    """Concept files of any format. FILE:0.8 applies a concept at strength 0.8."""
    library: OptionalPath = None
    """Folder of concept files. Those whose tokens the prompts name are used."""
    together: Literal["merge", "add", "refuse"] = "merge"
    """How to combine several concepts: merge them in memory, add their changes, or refuse."""
    compare: Flag = False
    """Draw each picture without the concepts and at strengths 0.4 to 1.2 of all of them, on one labeled sheet."""
    count: int = 8
    """Pictures for each prompt. Their seeds are --seed, --seed + 1, and so on."""
    seed: int = 0
    """Seed of the first picture of each prompt."""
    drawing: Drawing = field(default_factory=DrawingOptions)
    negative_prompt: str = ""
    """What the pictures should not show."""
    region: Texts = ()
    """Words and the region where they act, such as "<bear>=0,0,0.5,1". Keeps subjects apart.
    The numbers are left, top, right and bottom as shares of the picture."""
    regions: OptionalPath = None
    """YAML file of regions, with lines such as "<bear>": [0, 0, 0.5, 1], or with a prompt of its own for a region."""
    width: OptionalInt = None
    """Width in pixels. Default: the model's own."""
    height: OptionalInt = None
    """Height in pixels. Default: the model's own."""
    out: Path = Path("pictures")
    """Folder for the pictures. Their names are free ones: bear-0.png, or bear-0-2.png if there is one already."""
    overwrite: Flag = False
    """Replace existing pictures instead of taking free names."""
    model: Model = field(default_factory=ModelOptions)
    dtype: Dtype = "float32"
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.editing.regions import of_subjects, sample_in_regions
        from moongate.files import check_folder
        from moongate.sampling import check_seeds

        files, misplaced = self._split_concepts()
        prompts = self._all_prompts(misplaced)
        check_count("count", self.count)
        options = self.drawing.sample_options(
            negative_prompt=self.negative_prompt, width_px=self.width, height_px=self.height
        )
        check_seeds(self._seeds)
        check_folder(self.out)
        regions = self._regions()
        further = [self.negative_prompt, *(region.prompt for region in regions)]
        chosen, named = self._chosen([*prompts, *filter(None, further)], files)
        if self.compare:
            self._check_comparison(prompts, regions)
        backbone, concepts = read_concepts([file for file, _ in chosen], self.model, console, dtype=self.dtype)
        options = options.for_model(backbone)
        applied, strengths = concepts, [strength for _, strength in chosen]
        if self.together == "merge" and len(concepts) > 1:
            applied, strengths = [_merged(backbone, concepts, strengths, named, console)], [1.0]
        if self.compare:
            return self._compared(backbone, applied, strengths, prompts, options, console)
        jobs = [(prompt, seed) for prompt in prompts for seed in self._seeds]
        with contextlib.ExitStack() as stack:
            for one, strength in zip(applied, strengths, strict=True):
                stack.enter_context(one.applied(backbone, strength=strength))
            for prompt in prompts:
                _check_brackets(prompt, applied)
            spelled = [_spelled(prompt, applied) for prompt, _ in jobs]
            subjects = [subject.words for concept in applied for subject in concept.subjects]
            samples = sample_in_regions(
                backbone,
                spelled,
                seeds=[seed for _, seed in jobs],
                regions=[_region_spelled(region, applied) for region in of_subjects(regions, subjects, spelled)],
                options=options,
            )
            record = self._record(backbone, concepts, chosen, options)
            if regions:
                record["regions"] = [asdict(region) for region in regions]
            return self._save(samples, self._names(prompts), options, record, console)

    def _compared(
        self,
        backbone: "Backbone",
        concepts: "Sequence[Concept]",
        strengths: Sequence[float],
        prompts: Sequence[str],
        options: "SampleOptions",
        console: Console,
    ) -> dict[str, Any]:
        """Draw the sheet of --compare, of one concept or of the merge of several."""
        from moongate.cli.compare import write_comparison
        from moongate.files import free_path

        if len(concepts) != 1:
            raise OptionError(
                "--compare needs one concept, or several with --together merge. Name them with --concept."
            )
        concept = concepts[0].scaled(strengths[0])
        sheet = self.out / COMPARISON if self.overwrite else free_path(self.out / COMPARISON)
        return write_comparison(
            backbone, concept, prompts, seeds=self._seeds, options=options, sheet=sheet, console=console
        )

    def _check_comparison(self, prompts: Sequence[str], regions: "Sequence[Region]") -> None:
        """Raise OptionError for what --compare cannot draw, before a model is loaded."""
        from moongate.evaluation import STRENGTHS

        if regions:
            raise OptionError("--compare draws without regions. Leave out either --compare or the regions.")
        if (pictures := len(prompts) * self.count * (1 + len(STRENGTHS))) > SHEET_PICTURES:
            raise OptionError(
                f"--compare would put {pictures} pictures on one sheet, which holds at most {SHEET_PICTURES}. Give a "
                "smaller --count or fewer prompts."
            )

    @property
    def _seeds(self) -> range:
        """The seeds of the pictures of each prompt."""
        return range(self.seed, self.seed + self.count)

    def _regions(self) -> "list[Region]":
        from moongate.editing.regions import parse_region, read_regions

        return [*map(parse_region, flat(self.region)), *(read_regions(self.regions) if self.regions else ())]

    def _split_concepts(self) -> tuple[list[str], list[str]]:
        """Return the files of --concept, and the prompts behind them: it takes all words up to the next option."""
        from moongate.files import exists

        files: list[str] = []
        prompts: list[str] = []
        for values in self.concept:
            for number, value in enumerate(values):
                could_be = number and not exists(split_strength(value)[0]) and not Path(value).suffix
                (prompts if could_be and (" " in value or not self.prompts) else files).append(value)
        return files, prompts

    def _all_prompts(self, misplaced: Sequence[str]) -> list[str]:
        """Return each prompt once, also those behind the files of --concept."""
        prompts = [*self.prompts, *misplaced]
        if self.prompts_file:
            prompts += lines_of(self.prompts_file, "prompts")
        if not prompts:
            raise OptionError("There is no prompt. Give one in quotation marks, or a file with --prompts-file.")
        if not all(prompt.strip() for prompt in prompts):
            raise OptionError('A prompt is empty. Say what to draw, such as "photo of a dog on the beach".')
        if len(self.prompts) > 1 and not any(" " in prompt for prompt in self.prompts):
            warn(
                f"Each of the words {', '.join(self.prompts)} is drawn as a prompt of its own. If they are one, put "
                "quotation marks around them."
            )
        times = Counter(prompts)
        if twice := [prompt for prompt in times if times[prompt] > 1]:
            warn(
                f"The prompt {twice[0]!r} was given {times[twice[0]]} times; it is drawn once. For more pictures of it "
                "give --count."
            )
        return list(dict.fromkeys(prompts))

    def _chosen(self, texts: Sequence[str], files: Sequence[str]) -> "tuple[list[tuple[Path, float]], list[Entry]]":
        """Return the concept files with their strengths, and those that are a library's, whose merge is kept.

        Args:
            texts: All that is drawn or avoided, from which a library takes its concepts.
            files: The files of --concept.
        """
        from moongate.files import exists

        chosen = [split_strength(text) for text in files]
        named: list[Entry] = []
        if self.library and chosen:
            raise OptionError("Give either --concept or --library, which finds the concepts by their tokens.")
        if self.library:
            from moongate.merging.library import Library

            library = Library.open(self.library)
            for sentence in library.broken:
                warn(sentence)
            named = library.named_in(texts)
            chosen = [(path, 1.0) for path in library.paths(named)]
        missing = next((file for file, _ in chosen if not exists(file)), None)
        if missing is not None:
            raise OptionError(
                f"There is no concept file {missing}. Check the path; if it is a prompt, put it in front of --concept."
            )
        if self.together == "refuse" and len(chosen) > 1:
            raise OptionError(
                f"{len(chosen)} concepts were given, but --together refuse allows one. Merge them into one file with "
                "`moongate merge`."
            )
        return chosen, named

    def _names(self, prompts: Sequence[str]) -> list[str]:
        """Return a file name for each prompt and seed; prompts that would get the same name are numbered."""
        from moongate.files import file_name

        stems: dict[str, None] = {}
        numbers: Counter[str] = Counter()
        for prompt in prompts:
            name = stem = file_name(prompt.lower())
            while name in stems:
                numbers[stem] += 1
                name = f"{stem}-{numbers[stem] + 1}"
            stems[name] = None
        return [f"{stem}-{seed}.png" for stem in stems for seed in self._seeds]

    def _record(
        self,
        backbone: "Backbone",
        concepts: "Sequence[Concept]",
        chosen: Sequence[tuple[Path, float]],
        options: "SampleOptions",
    ) -> dict[str, Any]:
        """Return what each picture keeps of how it was made, in addition to its prompt and seed."""
        return {
            "model": backbone.name,
            "concepts": [
                {"file": file.name, "hash": concept.hash, "strength": strength}
                for concept, (file, strength) in zip(concepts, chosen, strict=True)
            ],
            "steps": options.steps,
            "guidance": options.guidance,
            "scheduler": options.scheduler,
            "together": self.together,
            "negative_prompt": self.negative_prompt,
        }

    def _save(
        self,
        samples: "Iterator[Sample]",
        names: Sequence[str],
        options: "SampleOptions",
        record: dict[str, Any],
        console: Console,
    ) -> dict[str, Any]:
        """Write each picture as it is drawn, then the contact sheet of all; return what was written."""
        from moongate.files import free_path, write_atomically
        from moongate.interop.pictures import picture_texts
        from moongate.pages import SheetGroup, grouped_sheet, png_bytes

        groups: dict[str, list[tuple[Any, str]]] = {}
        on_sheet = min(len(names), SHEET_PICTURES)
        written: list[dict[str, Any]] = []
        used = [(concept["file"], concept["strength"]) for concept in record["concepts"]]
        with progress_bar(console) as progress:
            task = progress.add_task("Drawing", total=len(names), note="")
            for drawn, name in zip(samples, names, strict=True):
                path = self.out / name if self.overwrite else free_path(self.out / name)
                texts = picture_texts(drawn, model=record["model"], concepts=used, options=options, facts=record)
                write_atomically(path, png_bytes(drawn.image, texts=texts))
                if len(written) < on_sheet:
                    shown = _for_sheet(drawn.image, on_sheet)
                    groups.setdefault(drawn.prompt, []).append((shown, f"seed {drawn.seed}"))
                written.append({"file": str(path), "prompt": drawn.prompt, "seed": drawn.seed})
                progress.advance(task)
        sheet = self.out / SHEET if self.overwrite else free_path(self.out / SHEET)
        titled = [
            SheetGroup(title=prompt, images=[image for image, _ in pairs], labels=[label for _, label in pairs])
            for prompt, pairs in groups.items()
        ]
        heading = ", ".join([record["model"], *(f"{file} at strength {strength:g}" for file, strength in used)])
        columns = min(self.count, SHEET_COLUMNS)
        write_atomically(sheet, png_bytes(grouped_sheet(titled, columns=columns, heading=heading)))
        pictures = "1 picture" if len(names) == 1 else f"{len(names)} pictures"
        left_out = f", which shows the first {on_sheet}," if on_sheet < len(names) else ""
        say(console, f"Wrote {pictures} and {sheet.name}{left_out} to {self.out}.")
        return {"pictures": written, "sheet": str(sheet), **record}


def _for_sheet(image: Any, count: int) -> Any:
    """Return a picture, uint8 [height, width, 3], as small as it must be for a contact sheet of so many."""
    import numpy as np
    from PIL import Image

    height, width = image.shape[:2]
    scale = (SHEET_PIXELS / (count * height * width)) ** 0.5
    if scale >= 1:
        return image
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _spelled(prompt: str, concepts: "Sequence[Concept]") -> str:
    """Return a prompt in which each word of several vectors is followed by its further tokens."""
    for concept in concepts:
        prompt = concept.spelled(prompt)
    return prompt


def _region_spelled(region: "Region", concepts: "Sequence[Concept]") -> "Region":
    """Return a region whose words are spelled as in the prompt."""
    prompt = region.prompt and _spelled(region.prompt, concepts)
    return replace(region, words=_spelled(region.words, concepts), prompt=prompt)


def _check_brackets(prompt: str, concepts: "Sequence[Concept]") -> None:
    """Warn of a prompt that has a token's word without its brackets, and no token: it draws none of the subjects."""
    tokens = [token for concept in concepts for token in concept.tokens]
    if any(token.lower() in prompt.lower() for token in tokens):
        return
    words = set(re.findall(r"[\w-]+", prompt.lower()))
    if bare := [token for token in tokens if token.strip("<>").lower() in words]:
        warn(
            f"The prompt {prompt!r} lacks the brackets of the token {bare[0]}, so it draws what the model knew before."
        )


def _merged(
    backbone: "Backbone",
    concepts: "Sequence[Concept]",
    strengths: Sequence[float],
    named: "Sequence[Entry]",
    console: Console,
) -> "Concept":
    """Merge concepts at their strengths and print the verdict; take the merge of a library's files that was kept."""
    from moongate.concept import Concept
    from moongate.files import write_atomically
    from moongate.merging import MergeOptions, merge
    from moongate.merging.library import merge_file
    from moongate.merging.page import verdict

    kept = merge_file(named, backbone.fingerprint, cache_folder()) if named else None
    if kept and kept.exists():
        with contextlib.suppress(ConceptFileError):  # it is damaged, and is made again
            return Concept.load(kept)
    scaled = [concept.scaled(strength) for concept, strength in zip(concepts, strengths, strict=True)]
    merged = merge(backbone, scaled, options=MergeOptions(cache=cache_folder()))
    for line in verdict(merged.report):
        say(console, line)
    if kept:
        with contextlib.suppress(OptionError):  # if it cannot be kept, the next command merges again
            write_atomically(kept, merged.concept.file_bytes)
    return merged.concept
