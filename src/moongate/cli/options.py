"""Options that several commands share: the model, how pictures are drawn, and types for options without a value.

Each shared option and its help text stand here once. A command takes a group as a field, for example
`model: Model = ModelOptions()`; its options then appear among the command's own.
"""

import math
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from rich.console import Console
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from moongate.cli.terminal import say
from moongate.errors import BaseMismatchError, OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept
    from moongate.interop import Recognized
    from moongate.sampling import SampleOptions

__all__ = [
    "Code",
    "Drawing",
    "DrawingOptions",
    "Dtype",
    "Flag",
    "Loading",
    "LoadingOptions",
    "Model",
    "ModelOptions",
    "Name",
    "OptionalFloat",
    "OptionalInt",
    "OptionalPath",
    "OptionalStr",
    "Output",
    "OutputOptions",
    "Paths",
    "READERS",
    "Texts",
    "WITHOUT_DEFAULT",
    "at_home",
    "cache_folder",
    "check_concept_file",
    "flat",
    "lines_of",
    "read_concept",
    "read_concepts",
    "split_strength",
]

WITHOUT_DEFAULT = tyro.conf.arg(help_behavior_hint="")
"""Leaves "(default: ...)" out of the help, where the text itself says what happens without the option."""


CONCEPT, OTHER_WEIGHTS = ".safetensors", (".ckpt", ".pt", ".pth", ".bin", ".safetensor")
"""The ending of concept files, and endings that are replaced where this one is advised."""

_T = TypeVar("_T")


def _given(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty. Give a value, or leave the option out; a variable that is not set is empty too.")
    return text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a whole number. Write it with digits only, such as 250.") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a number. Write it as 0.5 or 1e-5.") from error


def _path(text: str) -> Path:
    return Path(_given(text))


_READ: Mapping[Any, tuple[Callable[[str], Any], str]] = {
    int: (_whole, "INT"),
    float: (_number, "FLOAT"),
    Path: (_path, "PATH"),
}
"""How values are read whose type alone would end in an error of Python, or read nothing as the current folder."""
READERS = ConstructorRegistry()
"""Tells the parser how values of these types are read."""


@READERS.primitive_rule
def _rule(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    return _value(*_READ[kind.type]) if kind.type in _READ else None


def _value(read: Callable[[str], _T], metavar: str) -> PrimitiveConstructorSpec[_T]:
    """Return how an option with one value is read; one that may be missing is shown without "None"."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda _: True,
        str_from_instance=lambda value: [str(value)],
    )


OptionalStr = Annotated[str | None, _value(_given, "STR"), WITHOUT_DEFAULT]
OptionalInt = Annotated[int | None, _value(_whole, "INT"), WITHOUT_DEFAULT]
OptionalFloat = Annotated[float | None, _value(_number, "FLOAT"), WITHOUT_DEFAULT]
OptionalPath = Annotated[Path | None, _value(_path, "PATH"), WITHOUT_DEFAULT]
Name = Annotated[str, _value(_given, "STR")]
"""A path, or the name of something that is not on this machine."""
Flag = Annotated[bool, WITHOUT_DEFAULT]
Texts = Annotated[
    tuple[tuple[str, ...], ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(help_behavior_hint="", metavar="STR [STR ...]"),
]
"""An option of several values, `--token a b` or `--token a --token b`; `flat` joins them."""
Paths = Annotated[
    tuple[tuple[Path, ...], ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(help_behavior_hint="", metavar="PATH [PATH ...]"),
]

_T_co = TypeVar("_T_co")
Code = tyro.conf.Suppress[tyro.conf.Fixed[_T_co]]
"""A value that only code can give, and no word of a command line."""

Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    tyro.conf.arg(
        help="Precision of the model's weights. What is trained is float32. auto is bfloat16 on CPUs that are "
        "faster in it and float32 elsewhere; float16 is for GPUs without bfloat16."
    ),
]


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is printed."""

    json: Flag = False
    """Print the result as one JSON object on standard output, and everything else on standard error."""
    quiet: Flag = False
    """Print warnings and errors only, and what --json prints."""


Output = Annotated[OutputOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How a model is loaded."""

    config: OptionalPath = None
    """Diffusers folder that describes a model in a single file. It needs no weights."""
    device: OptionalStr = None
    """Device to compute on, such as cuda or cpu. Default: cuda if there is a GPU."""
    kept: Code[dict[str, Any] | None] = None
    """The model that was loaded last, for commands that run one after the other in one process: it is not loaded again
    as long as they name the same one."""

    def load(
        self,
        model: str,
        *,
        dtype: str = "float32",
        downloads: bool = True,
        layouts: Collection[str] = (),
        text_only: bool = False,
    ) -> "Backbone":
        """Load the model of that name in the precision of that name; `Backbone.load` explains the other arguments."""
        from moongate.backbone import Backbone
        from moongate.backbone.precision import set_precision

        precision = set_precision(dtype, self.device)
        key = repr((model, self.config, self.device, dtype, sorted(layouts), text_only))
        kept = {} if self.kept is None else self.kept
        if key not in kept:
            kept.clear()  # before the next model is loaded: two may not fit into the memory
            kept[key] = Backbone.load(
                model,
                config=self.config,
                device=self.device,
                dtype=precision,
                downloads=downloads,
                layouts=layouts,
                text_only=text_only,
            )
        return kept[key]


Loading = Annotated[LoadingOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    model: OptionalStr = None
    """pocket, a diffusers folder, a single file (.safetensors, .ckpt), or a model id of the Hugging Face hub.
    Default: the model that the concept file or the collection names; pocket where there is neither."""
    loading: Loading = field(default_factory=LoadingOptions)

    @property
    def device(self) -> str | None:
        """The device that was named, if any."""
        return self.loading.device

    def check(self) -> None:
        """Check what can be checked before the model is loaded, ahead of other work. Raises OptionError."""
        if self.device is not None:
            from moongate.backbone.devices import available_device

            available_device(self.device)

    def load(
        self,
        *,
        default: str = "pocket",
        dtype: str = "float32",
        layouts: Collection[str] = (),
        text_only: bool = False,
    ) -> "Backbone":
        """Load the model that the user named, or else the default, which must be on this machine."""
        return self.loading.load(
            self.model or default,
            dtype=dtype,
            downloads=self.model is not None,
            layouts=layouts,
            text_only=text_only,
        )


Model = Annotated[ModelOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """How pictures are drawn."""

    steps: int = 50
    """Denoising steps."""
    guidance: OptionalFloat = None
    """Scale of classifier-free guidance. 1 or less, such as 0, turns it off. Default: the model's own, or else 6."""
    scheduler: str = "ddpm"
    """ddpm, ddim, euler, euler-ancestral, dpm++, unipc, or a scheduler class of diffusers."""
    batch: int = 8
    """Pictures drawn at the same time."""

    def sample_options(
        self, *, negative_prompt: str = "", width_px: int | None = None, height_px: int | None = None
    ) -> "SampleOptions":
        """Return the library's options. Raises OptionError for a value out of range."""
        from moongate.sampling import SampleOptions, check_scheduler

        check_scheduler(self.scheduler)
        return SampleOptions(
            steps=self.steps,
            guidance=self.guidance,
            scheduler=self.scheduler,
            batch=self.batch,
            negative_prompt=negative_prompt,
            width_px=width_px,
            height_px=height_px,
        )


Drawing = Annotated[DrawingOptions, tyro.conf.arg(name="")]


def read_concepts(
    files: Sequence[Path], model: ModelOptions, console: Console, *, dtype: str = "float32", text_only: bool = False
) -> "tuple[Backbone, list[Concept]]":
    """Read concepts of any format and load their model; print what could not be read of a file.

    The model is the one that `model` names, or else the first that a file names, or pocket if there is no file. A model
    that only a file names is not fetched from the hub. With `text_only`, of the model only what reads text is loaded,
    unless a file changes more.
    """
    from moongate.interop import recognize

    model.check()
    _check_no_strength(files)
    recognized = [recognize(file) for file in files]
    _check_one_base(recognized)
    default = next((file.base for file in recognized if file.base), "" if recognized else "pocket")
    if not (model.model or default):
        raise OptionError(f"{files[0]} does not say which model it belongs to. Name it with --model.")
    layouts = {file.layout for file in recognized if file.layout}
    if dtype == "auto" and any(file.needs_base for file in recognized):
        dtype = "float32"  # the file stores the weights themselves, or what is subtracted from them
    text_only = text_only and all(file.changes_text_only for file in recognized)
    try:
        backbone = model.load(default=default, dtype=dtype, layouts=layouts, text_only=text_only)
    except BaseMismatchError as error:
        raise _of_another_base(recognized, model.model) from error
    return backbone, [_concept(file, backbone, console) for file in recognized]


def _check_one_base(files: "Sequence[Recognized]") -> None:
    """Refuse files that say that they were made for different models, before one is loaded."""
    known = [file for file in files if file.fingerprint.norms]
    for file in known[1:]:
        if not file.fingerprint.matches(known[0].fingerprint):
            raise BaseMismatchError(
                f"{known[0].path} was made for {known[0].base!r} and {file.path} for {file.base!r}. Concepts of "
                "different models cannot be used together: train both on one."
            )


def _of_another_base(files: "Sequence[Recognized]", model: str | None) -> BaseMismatchError:
    """Return the error for files whose layers are not those of the model that was named."""
    file = next(file for file in files if file.layout)
    return BaseMismatchError(
        f"{file.path} was made for {file.base!r}, and {model or 'the model'!r} has other layers. Give --model "
        f"{shlex.quote(file.base)}, or a copy of it."
    )


def read_concept(file: Path, model: ModelOptions, console: Console) -> "Concept":
    """Read a concept of any format; print what could not be read.

    The model is loaded only if `model` names one, or if the file does and holds full weights, which are compared with
    it.
    """
    from moongate.interop import recognize

    _check_no_strength([file])
    recognized = recognize(file)
    name = model.model or (recognized.base if recognized.needs_base else "")
    return _concept(recognized, model.load(default=name) if name else None, console)


def _concept(file: "Recognized", backbone: "Backbone | None", console: Console) -> "Concept":
    imported = file.concept(base=backbone)
    for note in imported.notes:
        say(console, f"{file.path}: {note}")
    return imported.concept


def split_strength(text: str) -> tuple[Path, float]:
    """Read FILE or FILE:STRENGTH. Raises OptionError for a strength that is not a finite number."""
    if not text.strip():
        raise OptionError("The name of a concept file is empty. Give a file; a variable that is not set is empty too.")
    from moongate.files import exists

    path, colon, number = text.rpartition(":")
    if not colon or exists(Path(text)):
        return Path(text), 1.0
    try:
        strength = float(number)
    except ValueError:
        return Path(text), 1.0
    if not math.isfinite(strength):
        raise OptionError(f"The strength of {path} is {number}. Give a number such as 0.8.")
    return Path(path), strength


def _check_no_strength(files: Sequence[Path]) -> None:
    """Raise OptionError for FILE:STRENGTH where the command takes the file alone."""
    for file in files:
        path, _ = split_strength(str(file))
        if path != file:
            raise OptionError(
                f"There is no concept file {file}. Only `generate` and `merge` read a strength behind the name, and "
                f"`edit` has --strength. Give {path}."
            )


def check_concept_file(out: Path, *, overwrite: bool) -> None:
    """Check, before any work, that a concept can be written there, under a name by which programs know its format.

    Raises:
        OptionError: The name has another ending, or the file may not be written.
    """
    from moongate.files import check_writable

    check_writable(out, overwrite=overwrite)
    if out.suffix.lower() != CONCEPT:
        stem = out.with_suffix("") if out.suffix.lower() in OTHER_WEIGHTS else out
        raise OptionError(f"A concept is a {CONCEPT} file, but --out is {out}. Give --out {stem}{CONCEPT}.")


def at_home(word: str) -> str:
    """Return a path, or an option with one, with the home folder for its tilde.

    Shells leave the tilde behind an equals sign and in quotes, and nobody else replaces it in files.
    """
    found = re.fullmatch(r"(--[\w-]+=)?(~(?:[/\\].*)?)", word, re.DOTALL)
    return f"{found[1] or ''}{Path(found[2]).expanduser()}" if found else word


def flat(values: Iterable[Iterable[_T]]) -> tuple[_T, ...]:
    """Return the values of an option that may be repeated, in the order in which they were given."""
    return tuple(value for several in values for value in several)


def lines_of(file: Path, what: str) -> list[str]:
    """Return the lines of a text file, without empty ones and comments, which begin with #.

    Raises:
        OptionError: The file is missing or cannot be read.
    """
    from moongate.texts import read_lines

    if not file.is_file():
        raise OptionError(f"There is no file of {what} {file}. Check the path.")
    try:
        return [line for line in read_lines(file) if not line.startswith("#")]
    except ValueError as error:
        raise OptionError(
            f"{file} cannot be read: {error}. Save it as UTF-8, with one of the {what} a line."
        ) from error


def cache_folder() -> Path:
    """Return the folder in which results are kept from one command to the next, such as captions' Gram matrices."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moongate"
