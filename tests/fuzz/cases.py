"""Seeded cases: a whole file of each kind that may come from a stranger, changed, and what reads it."""

import csv
import io
import json
import os
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save

from fuzz.mutators import (
    Mutator,
    mutated_archive,
    mutated_bytes,
    mutated_json,
    mutated_lines,
    mutated_pickle,
    mutated_png,
    mutated_safetensors,
    mutated_table,
    mutated_tar,
    odd_entry,
)
from making import make_concept
from moongate.analysis import spectra
from moongate.backbone import Backbone
from moongate.cli.options import lines_of
from moongate.cli.subjects import subjects_from_file
from moongate.compression import compress
from moongate.data import Regularization, Subject
from moongate.errors import MoongateError
from moongate.evaluation.prompts import read_prompts
from moongate.interop import recognize
from moongate.regularization.reading import read_bytes
from moongate.regularization.sources import Skipped, read_captions, read_source
from moongate.training.runs import Run, check_run

__all__ = ["KINDS", "run_case", "write_seeds"]

MODEL, TINY = "model", "tiny"
CONFIG = {"seed": 0, "steps": 4, "versions": {}}
PICTURES = {"PNG": "", "JPEG": "", "WEBP": "", "GIF": "", "BMP": "", "TIFF": "", "AVIF": "", "HEIF": "heic"}
"""Formats of pictures as Pillow calls them, with the suffix where it is another word."""
shared: dict[str, Backbone] = {}
"""The tiny backbone that concepts are read with."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of input."""

    file: str
    """The file or folder among the seeds."""
    read: Callable[[Path], Any]
    """What reads it."""
    inner: str = ""
    """The file of a folder that is changed; a pattern stands for any file that it fits."""
    mutators: tuple[Mutator, ...] = (mutated_bytes,)
    """What changes it, each as often as the others."""


def write_seeds(folder: Path, tiny: Backbone, tiny_folder: Path) -> None:
    """Write one whole file or folder of each kind."""
    shared[TINY] = tiny
    concept = make_concept(tiny)
    concept.save(folder / "concept.safetensors")
    name = next(iter(concept.deltas)).removesuffix(".weight")
    factors = {f"{name}.lora_A.weight": torch.ones(2, 16), f"{name}.lora_B.weight": torch.ones(32, 2)}
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_model.safetensors").write_bytes(save(factors))
    adapter = {"r": 2, "lora_alpha": 4, "alpha_pattern": {"a": 1}, "rank_pattern": {}, "use_rslora": False}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(adapter))
    torch.save({"emb_params": torch.ones(2, 16)}, folder / "embedding.pt")
    torch.save({"<bear>": torch.ones(16)}, folder / "learned_embeds.bin", _use_new_zipfile_serialization=False)
    (folder / "legacy.bin").write_bytes(pickle.dumps({"a": [1.0] * 9}))
    for form, suffix in PICTURES.items():
        (folder / f"picture.{suffix or form.lower()}").write_bytes(picture(form))
    with tarfile.open(folder / "shard.tar", "w") as shard:
        members = [("0.png", picture("PNG")), ("0.json", b'{"caption": "a dog"}'), ("1.png", picture("PNG"))]
        for member, content in [*members, ("1.txt", b"a cat")]:
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
    listed = {
        "instance_data_dir": "a",
        "class_data_dir": "b",
        "instance_prompt": "photo of a <x> dog",
        "class_prompt": "dog",
    }
    (folder / "concepts_list.json").write_text(json.dumps([listed]))
    (folder / "prompts.txt").write_text("photo of a {} in a forest\n{} and {1}\n")
    _write_photos(folder / "photos")
    run = Run.begin(folder / "run", CONFIG, resume=False)
    run.log({"index": 1})
    run.save({"step": 1, "weights": torch.ones(20)})
    shutil.copytree(tiny_folder, folder / MODEL)


def picture(form: str) -> bytes:
    if form == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8))
    exif = {} if form in ("GIF", "BMP") else {"exif": Image.Exif()}
    if exif:
        exif["exif"][0x0112] = 6
    image.save(buffer, format=form, **exif)
    return buffer.getvalue()


def _write_photos(folder: Path) -> None:
    folder.mkdir()
    for name in ("0.png", "1.png", "0.mask.png"):
        (folder / name).write_bytes(picture("PNG"))
    (folder / "0.txt").write_text("photo of a bear")
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "caption": "photo of a bear"}\n')


def load(path: Path) -> None:
    """Read a concept file with and without its base, and do with it what commands do."""
    read = recognize(path)
    concept = read.concept(base=shared[TINY] if len(path.name) % 2 else None).concept
    concept.hash.encode()
    with concept.applied(shared[TINY]) as backbone:
        for token in concept.tokens:
            backbone.encode_text([f"photo of a {token}"])
    compress(concept)
    spectra(concept)


def index(path: Path) -> None:
    skipped = Skipped()
    for record in read_source(str(path), skipped):
        try:
            read_bytes(record.picture)
        except MoongateError:
            continue
    "\n".join(skipped.notes).encode()


def resume(path: Path) -> None:
    check_run(path, CONFIG, resume=True, overwrite=False)
    Run.begin(path, CONFIG, resume=True).restore(steps=4)


def teach(path: Path) -> None:
    Subject.load([path], category="bear")


def teach_folder(path: Path) -> None:
    for read in (Subject.load, Regularization.load):
        try:
            read(path, category="bear")
        except MoongateError as error:
            str(error).encode(errors="surrogateescape")
    index(path)


def read_texts(path: Path) -> None:
    for read in (lambda: lines_of(path, "prompts"), lambda: read_prompts(str(path))):
        try:
            read()
        except MoongateError as error:
            assert str(error)  # noqa: PT017
    list(read_captions(str(path), Skipped()))


def load_model(path: Path) -> None:
    Backbone.load(path, device="cpu")


KINDS: Mapping[str, Kind] = {
    "concept": Kind(
        file="concept.safetensors", read=load, mutators=(mutated_bytes, mutated_safetensors, mutated_safetensors)
    ),
    "lora": Kind(
        file="lora", inner="adapter_model.safetensors", read=load, mutators=(mutated_bytes, mutated_safetensors)
    ),
    "adapter": Kind(
        file="lora", inner="adapter_config.json", read=load, mutators=(mutated_bytes, mutated_json, mutated_json)
    ),
    "embedding": Kind(file="embedding.pt", read=load, mutators=(mutated_bytes, mutated_archive)),
    "legacy": Kind(file="learned_embeds.bin", read=load, mutators=(mutated_bytes, mutated_pickle)),
    "pickle": Kind(file="legacy.bin", read=load, mutators=(mutated_bytes, mutated_pickle, mutated_pickle)),
    "png": Kind(file="picture.png", read=teach, mutators=(mutated_bytes, mutated_png)),
    **{
        form.lower(): Kind(file=f"picture.{suffix or form.lower()}", read=teach)
        for form, suffix in PICTURES.items()
        if form != "PNG"
    },
    "photos": Kind(file="photos", inner="*", read=teach_folder),
    "oddities": Kind(file="photos", read=teach_folder),
    "shard": Kind(file="shard.tar", read=index, mutators=(mutated_bytes, mutated_tar, mutated_tar)),
    "parquet": Kind(file="part.parquet", read=index, mutators=(mutated_bytes, mutated_table)),
    "jsonl": Kind(file="rows.jsonl", read=index, mutators=(mutated_bytes, mutated_lines)),
    "csv": Kind(file="rows.csv", read=index),
    "yaml": Kind(file="subjects.yaml", read=subjects_from_file),
    "json": Kind(file="subjects.json", read=subjects_from_file, mutators=(mutated_bytes, mutated_json)),
    "list": Kind(file="concepts_list.json", read=subjects_from_file, mutators=(mutated_json,)),
    "prompts": Kind(file="prompts.txt", read=read_texts),
    "state": Kind(file="run", inner="state.pt", read=resume, mutators=(mutated_bytes, mutated_archive)),
    "config": Kind(file="run", inner="config.json", read=resume, mutators=(mutated_bytes, mutated_json)),
    "log": Kind(file="run", inner="log.jsonl", read=resume, mutators=(mutated_bytes, mutated_lines)),
    "index": Kind(
        file=MODEL, inner="model_index.json", read=load_model, mutators=(mutated_bytes, mutated_json, mutated_json)
    ),
    "settings": Kind(
        file=MODEL, inner="moongate.json", read=load_model, mutators=(mutated_bytes, mutated_json, mutated_json)
    ),
    "parts": Kind(
        file=MODEL, inner="*/*config.json", read=load_model, mutators=(mutated_bytes, mutated_json, mutated_json)
    ),
    "words": Kind(file=MODEL, inner="tokenizer/*", read=load_model, mutators=(mutated_bytes, mutated_json)),
    "weights": Kind(
        file=MODEL, inner="*/*.safetensors", read=load_model, mutators=(mutated_bytes, mutated_safetensors)
    ),
}
"""The kinds of inputs by name."""


def run_case(name: str, number: int, seeds: Path, place: Path) -> None:
    """Write the changed file of a case into an empty folder and read it. Only errors of ours may come of it."""
    kind = KINDS[name]
    chance = random.Random(f"{name} {number}")
    target = place / kind.file
    if (seeds / kind.file).is_dir():
        shutil.copytree(seeds / kind.file, target)
    else:
        shutil.copy(seeds / kind.file, target)
        shutil.copy(seeds / "0.png", place / "0.png")
    if name == "oddities":
        odd_entry(target, chance)
    else:
        files = sorted(path for path in target.glob(kind.inner) if path.is_file()) if kind.inner else [target]
        file = chance.choice(files)
        mutate = chance.choice(kind.mutators)
        file.write_bytes(mutate(file.read_bytes(), chance))
    os.chdir(place)
    try:
        kind.read(target)
    except MoongateError as error:
        assert str(error)  # noqa: PT017
