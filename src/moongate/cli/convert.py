"""The command `moongate convert`: other programs' files to concepts, and concepts to their files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from moongate.cli.options import (
    Flag,
    Model,
    ModelOptions,
    OptionalInt,
    OptionalStr,
    Output,
    OutputOptions,
    Texts,
    check_concept_file,
    flat,
)
from moongate.cli.terminal import bytes_of, progress_bar, say, size_of
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept
    from moongate.interop import Format
    from moongate.sampling import Sample

__all__ = ["Convert"]


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a concept from any readable format to another."""

    source: Annotated[Path, tyro.conf.Positional]
    """File, or folder of files that belong together. The format is detected from the content."""
    to: str
    """moongate, adobe, compvis, diffusers, lora, kohya, or embedding."""
    out: Path
    """File to write; a folder for diffusers, lora, kohya and embedding.
    A name that ends in .safetensors makes one file of kohya, for A1111 and ComfyUI."""
    rank: OptionalInt = None
    """Maximum rank of each change, for lora and kohya.
    Default: the rank that the change has, and 32 for dense changes."""
    token: Texts = ()
    """New names for the tokens, in the order of the file."""
    category: Texts = ()
    """Categories of the subjects, in the order of the file. Most formats do not keep them; merging needs them."""
    license: str = "other"
    """License to name in the model card."""
    pictures: int = 4
    """Sample pictures to draw for the model card. Needs --model."""
    push: OptionalStr = None
    """OWNER/NAME: upload the folder to this repository on the Hugging Face hub."""
    overwrite: Flag = False
    """Replace what is at --out."""
    model: Model = field(default_factory=ModelOptions)
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate import interop

        target = self._target()
        recognized = interop.recognize(self.source)
        recognized.check_names(tokens=flat(self.token), categories=flat(self.category))
        name = self.model.model or (recognized.base if target.needs_base or recognized.needs_base else "")
        base = self.model.load(default=name) if name else None
        imported = recognized.concept(base=base, tokens=flat(self.token), categories=flat(self.category))
        say(console, f"{self.source}: {recognized.format.title}.")
        options = interop.WriteOptions(base=base, rank=self.rank)
        written = interop.write(imported.concept, self.out, to=self.to, options=options, overwrite=self.overwrite)
        for note in (*imported.notes, *written.notes):
            say(console, f"Note: {note}")
        files = ", ".join(f"{file.name} ({size_of(file)})" for file in written.files)
        is_folder = self.out.is_dir()
        say(console, f"Wrote {files} to {self.out}." if is_folder else f"Wrote {self.out} ({size_of(self.out)}).")
        if is_folder:
            self._write_card(imported.concept, target, base if self.model.model else None, console)
        if self.to == "kohya":
            for line in _words_to_type(imported.concept, written.files):
                say(console, line)
        address = interop.publish(self.out, self.push) if self.push else None
        if address:
            say(console, f"Uploaded to {address}.")
        return {
            "format": self.to,
            "files": [{"name": str(file), "bytes": bytes_of(file)} for file in written.files],
            "notes": [*imported.notes, *written.notes],
            "address": address,
        }

    def _target(self) -> "Format":
        """Return the format to write. Raises OptionError for options that do not fit it, before any work."""
        from moongate import interop
        from moongate.interop.adapters import check_rank

        target = interop.named_format(self.to)
        check_rank(self.rank)
        if self.pictures < 0:
            raise OptionError(f"pictures is {self.pictures}; it must be at least 0, which draws none.")
        interop.check_destination(self.out, to=self.to, overwrite=self.overwrite)
        if self.rank is not None and target.keeps_changes != "factors":
            cut = ", ".join(name for name, known in interop.FORMATS.items() if known.keeps_changes == "factors")
            raise OptionError(
                f"--rank cuts changes for {cut}, but {self.to!r} holds no low-rank factors. Leave it out, or make the "
                "concept smaller with `moongate compress` first."
            )
        if self.push and (not target.is_folder or interop.is_one_file(self.out, to=self.to)):
            folders = ", ".join(name for name, known in interop.FORMATS.items() if known.is_folder)
            raise OptionError(
                f"--push uploads a folder, but --out {self.out} is one file. Choose a folder, and one of {folders}."
            )
        if self.push:
            interop.check_login(self.push)
        if self.to == "moongate":
            check_concept_file(self.out, overwrite=self.overwrite)
        return target

    def _write_card(self, concept: "Concept", target: "Format", base: "Backbone | None", console: Console) -> None:
        """Write the model card, with sample pictures if the model was named."""
        from moongate.files import write_atomically
        from moongate.interop import CARD, card_prompts, model_card
        from moongate.pages import png_bytes

        pictures = []
        prompts = card_prompts(concept, self.pictures) if base else []
        for number, drawn in enumerate(_drawn(concept, base, prompts, console) if base and prompts else (), 1):
            pictures.append((drawn.prompt, f"sample-{number}.png"))
            write_atomically(self.out / pictures[-1][1], png_bytes(drawn.image))
        title = self.push.split("/")[-1] if self.push else self.out.resolve().name
        card = model_card(concept, target, title=title, license=self.license, pictures=pictures)
        write_atomically(self.out / CARD, card.encode())


def _words_to_type(concept: "Concept", files: Sequence[Path]) -> list[str]:
    """Return where kohya's files belong, and a prompt in the words of each program.

    Args:
        concept: What was written.
        files: The LoRA, then the embedding of each token; or a single file that has them inside.
    """
    from moongate.interop import bundled_names

    lora, *embeddings = (file.stem for file in files)
    place = f"Copy {lora}.safetensors into the folder of LoRAs"
    if not concept.tokens:
        comfy, a1111 = {}, {}
        where = [f"{place}. Then type:"]
    elif embeddings:
        comfy = a1111 = dict(zip(concept.tokens, embeddings, strict=True))
        names = ", ".join(f"{stem}.safetensors" for stem in embeddings)
        where = [f"{place}, and {names} into that of embeddings. Then type:"]
    else:
        a1111 = bundled_names(concept.tokens)
        comfy = dict.fromkeys(concept.tokens, lora) if len(concept.tokens) == 1 else {}
        where = [f"{place}{'; for ComfyUI also into that of embeddings' if comfy else ''}. Then type:"]
    lines = [f"  A1111:   {_said(concept, a1111)} <lora:{lora}:1>"]
    if comfy or not concept.tokens:
        words = {token: f"embedding:{stem}" for token, stem in comfy.items()}
        lines.insert(0, f"  ComfyUI: {_said(concept, words)}    (with {lora} in a node that loads LoRAs)")
    if concept.tokens and not embeddings:
        others = "Forge and diffusers" if comfy else "ComfyUI reads one word of such a file; it, Forge and diffusers"
        lines.append(f"{others} need the embeddings beside the LoRA: give --out a folder, without .safetensors.")
    return [*where, *lines]


def _said(concept: "Concept", names: Mapping[str, str]) -> str:
    """Return a prompt of the concept with other names for its tokens."""
    from moongate.interop import card_prompts

    prompt = next(iter(card_prompts(concept, 1)), "a prompt")
    for token, name in names.items():
        prompt = prompt.replace(token, name)
    return prompt


def _drawn(concept: "Concept", base: "Backbone", prompts: Sequence[str], console: Console) -> "Iterator[Sample]":
    """Draw one picture of each prompt, with a bar."""
    from moongate.run_page import DRAWING
    from moongate.sampling import sample

    say(console, f"Drawing {len(prompts)} pictures for the model card; --pictures 0 leaves them out.")
    with concept.applied(base), progress_bar(console) as progress:
        task = progress.add_task("Drawing", total=len(prompts), note="")
        for drawn in sample(base, prompts, seeds=range(len(prompts)), options=DRAWING):
            progress.advance(task)
            yield drawn
