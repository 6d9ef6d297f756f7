"""Measure what a command costs before and after its work: CPU seconds, compared with those of importing PyTorch.

    python benchmarks/startup.py [--runs 3]

Each command runs in a separate process, on a concept of pocket's layers with random numbers, and keeps the bytecode of
our modules, as an installed package does. CPU time hardly depends on what else the computer does, and its ratio to the
import of PyTorch hardly on the computer.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import tyro

from moongate.backbone import Backbone
from moongate.concept import Concept, Dense, SubjectRecord


def random_concept(backbone: Backbone, word: str, seed: int) -> Concept:
    """Return a concept of small random changes."""
    generator = torch.Generator().manual_seed(seed)
    weights = backbone.weights("cross-attention-kv")
    return Concept(
        deltas={name: Dense(delta=0.01 * torch.randn(w.shape, generator=generator)) for name, w in weights.items()},
        tokens={f"<{word}>": backbone.random_row(generator)},
        token_widths=backbone.token_widths,
        subjects=(SubjectRecord(category=word, token=f"<{word}>", prompts=(f"photo of a <{word}> {word}",)),),
        base="pocket",
        fingerprint=backbone.fingerprint,
        method="custom-diffusion",
        record={"rare_token": seed},
    )


def cpu_seconds(words: list[str]) -> float:
    """Run a program and return the CPU time that it and its threads took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, *words], check=False, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(*, runs: int = 3) -> None:
    """Measure and print the least of several runs.

    Args:
        runs: Runs of each command.
    """
    backbone = Backbone.load("pocket", device="cpu")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = [
            str(random_concept(backbone, word, seed).save(folder / f"{word}.safetensors"))
            for seed, word in enumerate(("house", "owl"))
        ]
        moongate = ["-m", "moongate"]
        programs = {
            "python -c 'import torch'": ["-c", "import torch"],
            "a text encoder and a denoiser": [
                "-c",
                "from transformers import CLIPTextModel; from diffusers import UNet2DConditionModel, AutoencoderKL",
            ],
            "moongate --help": [*moongate, "--help"],
            "moongate train --help": [*moongate, "train", "--help"],
            "moongate train --setps 3": [*moongate, "train", "--setps", "3"],
            "moongate info": [*moongate, "info", files[0]],
            "moongate convert --to kohya": [
                *(*moongate, "convert", files[0], "--to", "kohya", "--out", f"{place}/lora", "--overwrite"),
            ],
            "moongate merge": [*moongate, "merge", *files, "--out", f"{place}/both.safetensors", "--overwrite"],
        }
        seconds = {name: min(cpu_seconds(words) for _ in range(runs)) for name, words in programs.items()}
    reference = next(iter(seconds.values()))
    print(f"{'':32s}{'CPU seconds':>12}{'times torch':>13}")
    for name, value in seconds.items():
        print(f"{name:32s}{value:12.2f}{value / reference:13.2f}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
