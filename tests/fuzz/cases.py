"""Seeded cases: a whole file of each kind that may come from a stranger, mutated, and what reads it."""

import csv
import io
import json
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save

from making import make_concept
from moongate.backbone import Backbone
from moongate.cli.subjects import subjects_from_file
from moongate.data import Regularization, Subject
from moongate.errors import MoongateError
from moongate.interop import read
from moongate.regularization.reading import read_bytes
from moongate.regularization.sources import Skipped, read_source
from moongate.training.runs import Run, check_run

__all__ = ["KINDS", "run_case", "write_seeds"]

MODEL = "model"
CONFIG = {"seed": 0, "steps": 4, "versions": {}}
SPLICES = [
    *(b"", b"\0", b"\xff" * 8, b"[" * 3000, b"{}" * 40, b'"\\ud800"', b"9" * 5000, b"-1", b"1e999", b"null", b"NaN"),
    *(
        b"/dev/zero",
        b"../" * 40,
        b"\x1b]0;x\x07",
        b"!!python/object/apply:os.system",
        b"%!PS-Adobe-3.0\n",
        b"(.*)*" * 9,
    ),
]
"""Bytes that replace a part of a file."""


def picture(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(buffer, format=form)
    return buffer.getvalue()


def write_seeds(folder: Path, tiny: Backbone, tiny_folder: Path) -> None:
    """Write one whole file or folder of each kind."""
    concept = make_concept(tiny)
    concept.save(folder / "concept.safetensors")
    name = next(iter(concept.deltas)).removesuffix(".weight")
    factors = {f"{name}.lora_A.weight": torch.ones(2, 16), f"{name}.lora_B.weight": torch.ones(32, 2)}
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_model.safetensors").write_bytes(save(factors))
    (folder / "lora" / "adapter_config.json").write_text(
        json.dumps({"r": 2, "lora_alpha": 4, "alpha_pattern": {"a": 1}})
    )
    torch.save({"emb_params": torch.ones(2, 16)}, folder / "embedding.pt")
    (folder / "legacy.bin").write_bytes(pickle.dumps({"a": [1.0] * 9}))
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        (folder / f"picture.{form.lower()}").write_bytes(picture(form))
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for member, content in (
            ("0.png", picture("PNG")),
            ("0.json", b'{"caption": "a dog"}'),
            ("1.png", picture("PNG")),
        ):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    pq.write_table(pa.table({"caption": ["a dog"], "image": [picture("PNG")]}), folder / "part.parquet")
    (folder / "0.png").write_bytes(picture("PNG"))
    (folder / "rows.jsonl").write_text('{"file_name": "0.png", "caption": "a dog"}\n' * 2)
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "caption"], ["0.png", "a dog"]])
    (folder / "subjects.yaml").write_text("- pictures: bear\n  category: teddy bear\n  token: <bear>\n")
    (folder / "subjects.json").write_text('[{"pictures": "bear", "category": "teddy bear", "token": null}]')
    run = Run.begin(folder / "run", CONFIG, resume=False)
    run.log({"index": 1})
    run.save({"step": 1, "weights": torch.ones(20)})
    shutil.copytree(tiny_folder, folder / MODEL)


def load(path: Path) -> None:
    read(path).concept.hash.encode()


def index(path: Path) -> None:
    for record in read_source(str(path), Skipped()):
        read_bytes(record.picture)


def resume(path: Path) -> None:
    check_run(path, CONFIG, resume=True, overwrite=False)
    Run.begin(path, CONFIG, resume=True).restore(steps=4)


def teach(path: Path) -> None:
    Subject.load([path], category="bear")


KINDS: Mapping[str, tuple[str, str, Callable[[Path], Any]]] = {
    "concept": ("concept.safetensors", "", load),
    "lora": ("lora", "adapter_model.safetensors", load),
    "adapter": ("lora", "adapter_config.json", load),
    "embedding": ("embedding.pt", "", load),
    "pickle": ("legacy.bin", "", load),
    **{form: (f"picture.{form}", "", teach) for form in ("png", "jpeg", "webp", "gif", "bmp", "tiff", "avif")},
    "shard": ("shard.tar", "", index),
    "parquet": ("part.parquet", "", index),
    "jsonl": ("rows.jsonl", "", index),
    "csv": ("rows.csv", "", index),
    "yaml": ("subjects.yaml", "", subjects_from_file),
    "json": ("subjects.json", "", subjects_from_file),
    "state": ("run", "state.pt", resume),
    "config": ("run", "config.json", resume),
    "log": ("run", "log.jsonl", resume),
    "index": (MODEL, "model_index.json", lambda path: Backbone.load(path, device="cpu")),
    "settings": (MODEL, "moongate.json", lambda path: Backbone.load(path, device="cpu")),
    "folder": ("", "", lambda path: Regularization.load(path, category="dog")),
}
"""For each kind: the file or folder, the file in it that is mutated, and what reads it."""


def run_case(kind: str, number: int, seeds: Path, place: Path) -> None:
    """Write the mutated file of a case into an empty folder and read it. Only errors of ours may come of it."""
    name, inner, reader = KINDS[kind]
    chance = random.Random(f"{kind} {number}")
    target = place / (name or "all")
    if not name:
        shutil.copytree(seeds, target, ignore=shutil.ignore_patterns(MODEL))
        inner = chance.choice(sorted(path.name for path in target.iterdir() if path.is_file()))
    elif (seeds / name).is_dir():
        shutil.copytree(seeds / name, target)
    else:
        shutil.copy(seeds / name, target)
    file = target / inner if inner else target
    if (seeds / "0.png").exists() and not name.startswith(MODEL):
        shutil.copy(seeds / "0.png", place / "0.png")
    file.write_bytes(mutated(file.read_bytes() if file.exists() else b"{}", chance))
    try:
        reader(target)
    except MoongateError as error:
        assert str(error)  # noqa: PT017


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return the content with flipped bits, a part replaced, a part repeated, or its end cut off."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        begin = chance.randrange(len(changed) + 1)
        if chance.random() < 0.5:
            begin = min(begin, chance.randrange(600))  # headers are at the beginning
        action = chance.random()
        if action < 0.4 and begin < len(changed):
            changed[begin] ^= 1 << chance.randrange(8)
        elif action < 0.7:
            changed[begin : begin + chance.randrange(12)] = chance.choice(SPLICES)
        elif action < 0.85:
            changed[begin:begin] = changed[begin : begin + chance.randrange(200)]
        else:
            del changed[begin : len(changed) if chance.random() < 0.3 else begin + chance.randrange(40)]
    return bytes(changed)
