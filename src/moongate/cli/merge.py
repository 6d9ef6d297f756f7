"""The command `moongate merge`."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from moongate.cli.options import (
    WITHOUT_DEFAULT,
    Flag,
    Model,
    ModelOptions,
    OptionalPath,
    Output,
    OutputOptions,
    Texts,
    cache_folder,
    check_concept_file,
    flat,
    lines_of,
    read_concepts,
    split_strength,
)
from moongate.cli.terminal import bytes_of, print_table, progress_bar, say, size_of
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept
    from moongate.merging import Merged
    from moongate.sampling import Sample

__all__ = ["Merge"]

SEEDS = range(4)
"""Seeds of the pictures of --draw."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge concepts into one in closed form, without training."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional, WITHOUT_DEFAULT] = ()
    """Concept files of any format: trained alone or together, compressed, or merged before.
    FILE:0.8 merges a concept at strength 0.8.
    A single concept is cleaned: it changes other captions less. None is needed to erase or protect words."""
    out: OptionalPath = None
    """Concept file to write."""
    check: Flag = False
    """Say what the merge would keep, and write no concept."""
    without: Texts = ()
    """Subjects to leave out, named by token or words, such as one of an earlier merge."""
    erase: Texts = ()
    """Words to erase, with what to draw instead: "snowman=>object"."""
    protect: Texts = ()
    """Words that must keep their meaning, or text files of them, one per line."""
    captions: OptionalPath = None
    """Text file of neutral captions, one per line, in addition to the thousand that come with Moongate."""
    contexts: int = 1
    """Number of contexts, from 1 to 8, in which each subject keeps its values exactly."""
    elsewhere: float = 300.0
    """Weight of each subject's values in further contexts, relative to a neutral caption. 0 leaves them out."""
    only: Literal["both", "keys", "values"] = "both"
    """What the merge changes."""
    unconditional: Literal["fixed", "free"] = "fixed"
    """Whether the empty prompt, which guidance subtracts, stays exactly the base's."""
    neutral: Literal["alike", "in-danger"] = "alike"
    """How neutral captions count: all alike, or by how far the concepts move them in each layer."""
    report: OptionalPath = None
    """Folder for report.json and index.html."""
    draw: Flag = False
    """Draw each subject and all together before and after the merge, for the report. Needs --report."""
    overwrite: Flag = False
    """Replace an existing concept file."""
    model: Model = field(default_factory=ModelOptions)
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.files import check_folder
        from moongate.merging import MergeOptions, merge
        from moongate.merging.page import HEAD, summary_rows, verdict, write_report

        if self.check == (self.out is not None):
            raise OptionError("Give either --out for the merged concept, or --check, which writes none.")
        if self.out:
            check_concept_file(self.out, overwrite=self.overwrite)
        if self.report:
            check_folder(self.report)
        if self.draw and not self.report:
            raise OptionError("--draw makes pictures for the report. Say where it goes with --report FOLDER.")
        lines = lines_of(self.captions, "captions") if self.captions else []
        options = MergeOptions(
            captions=tuple(lines),
            contexts=self.contexts,
            elsewhere=self.elsewhere,
            without=flat(self.without),
            erase=flat(self.erase),
            protect=tuple(words for value in flat(self.protect) for words in _words(value)),
            only=self.only,
            unconditional=self.unconditional,
            neutral=self.neutral,
            cache=cache_folder(),
        )
        if not (self.files or options.erase or options.protect):
            raise OptionError("There is no concept to merge. Name one or several files.")
        chosen = [split_strength(file) for file in self.files]
        if nothing := [file for file, strength in chosen if not strength]:
            raise OptionError(f"{nothing[0]} has no effect at strength 0, so there is nothing to merge. Leave it out.")
        backbone, concepts = read_concepts([file for file, _ in chosen], self.model, console, text_only=not self.draw)
        concepts = [concept.scaled(strength) for concept, (_, strength) in zip(concepts, chosen, strict=True)]
        merged = merge(backbone, concepts, options=options)
        if self.out:
            merged.concept.save(self.out, overwrite=self.overwrite)
        for line in verdict(merged.report):
            say(console, line)
        if merged.report.subjects:
            print_table(console, HEAD, summary_rows(merged.report))
        if self.report:
            drawn = _drawn(backbone, concepts, merged, console) if self.draw else None
            say(console, f"Wrote {write_report(merged.report, self.report, drawn=drawn)}.")
        if self.out:
            say(console, f"Wrote {self.out} ({size_of(self.out)}).")
        written = {"out": str(self.out), "bytes": bytes_of(self.out)} if self.out else {}
        return {**written, **merged.report.to_json()}


def _drawn(
    backbone: "Backbone", concepts: "Sequence[Concept]", merged: "Merged", console: Console
) -> "Mapping[str, Mapping[str, Sequence[Sample]]]":
    """Draw each subject with the base alone, with its own concept and after the merge, and all of them together.

    All together are drawn by a concept that knows all, and words that were erased or protected by none.
    """
    from moongate.data.captions import photo_of
    from moongate.evaluation import Way, compare
    from moongate.merging.constraints import with_unique_tokens
    from moongate.merging.edits import Edit
    from moongate.merging.features import fits
    from moongate.run_page import DRAWING, duration

    words = [*dict.fromkeys(subject.words for subject in merged.concept.subjects)]
    named = {photo_of(word): {word} for word in words}
    with backbone.tokens(merged.concept.tokens):
        if len(words) > 1 and fits(backbone, photo_of(*words)):
            named[photo_of(*words)] = {*words}
    prompts = [*named, *(photo_of(Edit.named(edit.name).words) for edit in merged.report.edits)]
    ways = [Way(label="the base alone")]
    for concept in with_unique_tokens(concepts)[0]:
        known = [subject.words for subject in concept.subjects]
        if own := tuple(prompt for prompt, subjects in named.items() if subjects <= {*known}):
            label = f"{', '.join(known)} before the merge"
            is_taken = any(way.label == label for way in ways)  # by another concept of the same words
            ways.append(Way(label=f"{label} ({len(ways)})" if is_taken else label, concept=concept, prompts=own))
    ways.append(Way(label="after the merge", concept=merged.concept))
    count = sum(len(prompts if way.prompts is None else way.prompts) for way in ways) * len(SEEDS)
    say(console, f"Drawing {count} pictures for the report.")
    began = time.monotonic()
    with progress_bar(console) as progress:
        task = progress.add_task("Drawing", total=None, note="")

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)
            if done == len(SEEDS) < total:
                left = duration((time.monotonic() - began) / done * (total - done))
                say(console, f"This takes about {left} more.")

        return compare(backbone, prompts, ways, seeds=SEEDS, options=DRAWING, on_picture=show)


def _words(value: str) -> list[str]:
    """Return the words of a text file, or else the words themselves."""
    from moongate.files import is_file

    names_file = Path(value).suffix == ".txt" or is_file(Path(value))
    return lines_of(Path(value), "words to protect") if names_file else [value]
