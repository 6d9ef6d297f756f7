"""Concepts, collections and a CLIP for the commands' tests, made by the commands on the tiny model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import CLIPConfig, CLIPModel

from command_line import Command, command, run
from conftest import make_tokenizer, text_config, write_pictures
from moongate.backbone import precision
from moongate.run_page import drawing
from moongate.sampling import SampleOptions


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _float32() -> Iterator[None]:
    """What a CPU gains by bfloat16, which some machines measure, must not decide how a test ends."""
    with pytest.MonkeyPatch.context() as patch:  # of its own, which `monkeypatch.undo` in a test does not undo
        patch.setattr(precision, "_gains_by_bfloat16", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _quick_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "DRAWING", SampleOptions(steps=2))


@pytest.fixture
def regularization(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "bears", count=4, seed=1)
    return tmp_path / "bears"


@pytest.fixture
def train(pictures: Path, tiny_folder: Path, regularization: Path, tmp_path: Path) -> Command:
    """A short training of `<bear> teddy bear` on the tiny model; it writes bear.safetensors."""
    return command(
        "train",
        pictures,
        category="teddy bear",
        token="<bear>",
        model=tiny_folder,
        regularization=regularization,
        out=tmp_path / "bear.safetensors",
        steps=3,
        device="cpu",
        no_page=True,
        ignore_memory=True,
    )


@pytest.fixture
def bear(train: Command) -> Path:
    """The concept file that `train` writes."""
    run(train)
    return Path(train.options["out"])


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """Twelve captioned pictures, four of them of dogs."""
    folder = tmp_path / "captioned"
    write_pictures(folder, count=12, seed=3)
    for index in range(12):
        caption = f"photo of a {('dog', 'cat', 'chair')[index % 3]} {('on', 'in', 'of', 'far')[index // 3]} the beach"
        (folder / f"{index}.txt").write_text(caption)
    return folder


@pytest.fixture
def collection(captioned: Path, tiny_folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "collection"
    run(command("retrieve index", captioned, model=tiny_folder, out=out, device="cpu"))
    return out


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """The folder of a tiny CLIP of the real class."""
    tokenizer = make_tokenizer()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    towers = {
        "text_config": text_config(tokenizer).to_dict(),
        "vision_config": {**vision, "image_size": 32, "patch_size": 16},
    }
    CLIPModel(CLIPConfig(**towers, projection_dim=12)).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"
