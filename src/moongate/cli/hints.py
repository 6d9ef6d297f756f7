"""Options by the names that other programs give them: a user who types one learns our name.

The names are those of kohya's scripts, the training scripts of diffusers, ai-toolkit, OneTrainer, A1111 and ComfyUI.
They are no second names for our options: one thing has one name.
"""

import dataclasses
import itertools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import tyro

from moongate.errors import OptionError

__all__ = ["OTHER_NAMES", "check_options", "options_of"]

_CALLED: Mapping[str, str] = {
    "--model": "base base-model base-model-name checkpoint ckpt model-id name-or-path pretrained-model "
    "pretrained-model-name-or-path sd-model-checkpoint",
    "--category": "class-name class-prompt class-token class-tokens class-word subject-class",
    "--token": "instance-token modifier-token placeholder placeholder-token trigger trigger-word",
    "--concepts": "concept-file concept-file-name concepts-list dataset-config",
    "--regularization": "class-data-dir class-data-root prior-data-dir reg-data-dir reg-dir real-prior "
    "with-prior-preservation",
    "--regularization-count": "num-class-images num-reg-images",
    "--out": "output output-dir output-file output-folder output-model-destination output-name outdir save-dir save-to",
    "--run": "logging-dir workspace-dir",
    "--steps": "iterations max-steps max-train-steps n-steps num-inference-steps num-steps num-train-steps "
    "sampling-steps train-steps",
    "--batch": "batch-size train-batch-size sample-batch-size",
    "--lr-per-picture": "lr unet-lr",
    "--accumulate": "gradient-accumulation gradient-accumulation-steps",
    "--processes": "num-cpu-threads-per-process num-processes nproc nproc-per-node",
    "--optimizer": "optimizer-type use-8bit-adam",
    "--resolution": "image-size size train-resolution",
    "--save-every": "checkpointing-steps save-every-n-steps save-steps",
    "--tracker": "log-with report-to",
    "--recompute": "gradient-checkpointing",
    "--dtype": "mixed-precision precision save-precision train-dtype weight-dtype",
    "--flips": "flip-aug hflip random-flip",
    "--validate-every": "sample-every sample-every-n-steps validation-epochs validation-steps",
    "--validation-prompt": "sample-prompt sample-prompts",
    "--resume": "resume-from-checkpoint resume-from",
    "--start-from": "init-lora network-weights resume-lora",
    "--energy": "network-dim network-rank lora-rank",
    "--guidance": "cfg cfg-scale guidance-scale scale unconditional-guidance-scale",
    "--scheduler": "sampler sampler-name sampling-method noise-scheduler",
    "--count": "batch-count n-iter n-samples num-images num-images-per-prompt num-outputs num-samples",
    "--negative-prompt": "neg negative uncond-prompt",
    "--prompts-file": "from-file prompt-file",
    "--concept": "embedding embeddings lora lora-path loras textual-inversion",
    "--width": "image-width w",
    "--height": "image-height h",
    "--overwrite": "force overwrite-output-dir",
    "--push": "hub-model-id push-to-hub",
    "--to": "format output-format",
    "--device": "gpu gpu-id gpu-ids",
}
"""Names of other programs, by our option."""
_EXPLAINED: Mapping[str, str] = {
    "instance-data-dir dataset-path folder-path image-folder train-data-dir": "Name the folder of pictures without an "
    "option: moongate train my-photos/.",
    "instance-prompt": 'Give --category and --token instead, such as --category dog --token "<rex>"; a text file '
    "next to a picture holds its caption.",
    "prompt": "Write the prompt without an option, in quotation marks.",
    "epochs max-train-epochs num-train-epochs": "Trainings are counted in steps: --steps.",
    "lora-scale lora-strength lora-weight network-mul strength": "Write the strength behind the file: "
    "--concept FILE:0.8.",
    "cache-latents enable-xformers-memory-efficient-attention sdpa xformers": "Leave it out: PyTorch's own efficient "
    "attention is always used.",
    "clip-skip": "Leave it out: the text encoder is read where the model was trained to read it.",
    "freeze-model network-module train-text-encoder": "What is trained is chosen by --method.",
    "prior-loss-weight": "Leave it out: the method sets it, and --regularization none trains without regularization.",
    "masked-loss masked-training": "Leave it out: a mask photo.mask.png next to photo.jpg is always used.",
    "caption-ext caption-extension": "Leave it out: .txt and .caption files next to the pictures are read.",
    "vae": "Leave it out: the autoencoder is that of the model.",
}
"""What to do instead, by names of other programs that are no option here."""

OTHER_NAMES: Mapping[str, str] = {name: ours for ours, names in _CALLED.items() for name in names.split()}
"""Our option by the name that another program gives it, without its hyphens."""
_INSTEAD = {name: text for names, text in _EXPLAINED.items() for name in names.split()}


def check_options(command: Any, words: Sequence[str]) -> None:
    """Check the options of a command line for names of other programs, and for too many values.

    Unknown names are left to the parser.

    Args:
        command: The class of options.
        words: The words after `moongate`.

    Raises:
        OptionError: It says what the option is called here, that it is given twice, or that it takes one value.
    """
    known = options_of(command)
    given = [word.partition("=")[0].lstrip("-").replace("_", "-") for word in words if word.startswith("--")]
    for name in given:
        if name in known:
            if given.count(name) > 1 and not _may_repeat(known[name]):
                raise OptionError(f"--{name} is given {given.count(name)} times, but counts once. Leave one.")
            continue
        if name in _INSTEAD:
            raise OptionError(f"There is no option --{name}. {_INSTEAD[name]}")
        if ours := OTHER_NAMES.get(name):
            elsewhere = "" if ours[2:] in known else ", which this command does not have"
            raise OptionError(f"There is no option --{name}. In Moongate it is called {ours}{elsewhere}.")
    has_positionals = any(tyro.conf.Positional in _marks(option) for option in known.values())
    if not has_positionals or not words[1:2] or not words[1].startswith("-"):  # else the last words may be positional
        for at in range(len(words)):
            _check_one_value(known, words[at:])


def _check_one_value(known: Mapping[str, dataclasses.Field[Any]], words: Sequence[str]) -> None:
    """Raise OptionError if words begin with an option that takes one value each time, but several follow it."""
    written, equals, value = words[0].partition("=")
    name = written.lstrip("-").replace("_", "-")
    if not written.startswith("--") or name not in known or not _takes_one_each_time(known[name]):
        return
    values = [*([value] if equals else []), *itertools.takewhile(lambda word: not word.startswith("-"), words[1:])]
    if len(values) > 1:
        repeated = " ".join(f"--{name} {shlex.quote(each)}" for each in values)
        raise OptionError(f"--{name} takes one value each time, but {len(values)} follow it. Repeat it: {repeated}.")


def options_of(command: Any) -> dict[str, dataclasses.Field[Any]]:
    """Return the options of a command by name, without their hyphens; those of its groups are among them."""
    options: dict[str, dataclasses.Field[Any]] = {}
    for option in dataclasses.fields(command):
        is_group = dataclasses.is_dataclass(option.default_factory)
        options |= options_of(option.default_factory) if is_group else {option.name.replace("_", "-"): option}
    return options


def _may_repeat(option: dataclasses.Field[Any]) -> bool:
    """Return whether an option may be given several times: it collects its values, or has none that could differ."""
    return option.default is False or tyro.conf.UseAppendAction in _marks(option)


def _takes_one_each_time(option: dataclasses.Field[Any]) -> bool:
    """Return whether an option collects the values of its repetitions, of which each has one."""
    if tyro.conf.UseAppendAction not in _marks(option):
        return False
    kind = get_args(get_args(option.type)[0])[0]  # of the values of one repetition
    return get_origin(kind) is not tuple


def _marks(option: dataclasses.Field[Any]) -> Sequence[Any]:
    return getattr(option.type, "__metadata__", ())
