import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from conftest import make_tokenizer, text_config
from making import make_clip
from moongate import pocket
from moongate.backbone import PROJECTION, PROJECTION_FILE, SETTINGS_FILE, Backbone
from moongate.errors import BackboneError, OptionError
from moongate.evaluation.networks.clip import CLIP_MEAN, CLIP_STD, Clip

CAPTIONS = ["photo of a dog", "cat", "drawing of a red chair on the beach", "", "very " * 40]


@pytest.fixture
def clip_folder(tiny: Backbone, tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip", tiny)


@pytest.fixture
def pipeline_folder(tmp_path: Path) -> Path:
    """A model folder in diffusers' layout, with the parts of a CLIP model that pocket's has."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path / "model", make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel(text_config(tokenizer)).save_pretrained(folder / "text_encoder")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=64, patch_size=32, projection_dim=16)
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    save_file({PROJECTION: torch.eye(16)}, folder / PROJECTION_FILE)
    (folder / SETTINGS_FILE).write_text('{"retrieval_threshold": 0.4}')
    return folder


def pool(count: int) -> tuple[list[np.ndarray], list[str]]:
    folder = pocket.pool_folder()
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()][:count]
    pictures = [np.asarray(Image.open(folder / row["file_name"]).convert("RGB")) for row in rows]
    return pictures, [row["caption"] for row in rows]


# --- captions -------------------------------------------------------------------------------------------------------


def test_captions_are_the_unit_features_of_their_end_token_whatever_their_company(tiny: Backbone) -> None:
    vectors = Clip.of_backbone(tiny).captions(CAPTIONS)
    assert (vectors.shape, vectors.dtype) == ((5, 16), torch.float32)
    with torch.no_grad():
        ids, features = tiny.token_ids(CAPTIONS), tiny.encode_text(CAPTIONS).features
    for vector, row, caption_ids in zip(vectors, features, ids, strict=True):
        end = row[caption_ids.tolist().index(tiny.tokenizer.eos_token_id)]
        torch.testing.assert_close(vector, end / end.norm(), atol=1e-5, rtol=0)


def test_a_backbone_that_brings_a_projection_embeds_captions_in_the_space_of_pictures(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Clip.of_backbone(tiny).captions(CAPTIONS)
    projection = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(tiny, "caption_projection", projection)
    expected = torch.nn.functional.normalize(plain @ projection.T, dim=1)
    torch.testing.assert_close(Clip.of_backbone(tiny).captions(CAPTIONS), expected, atol=1e-5, rtol=0)


def test_a_text_encoder_knows_its_own_probe_in_any_precision_and_no_other(
    tiny: Backbone, other_folder: Path, clip_folder: Path
) -> None:
    own = Clip.of_backbone(tiny)
    half = Clip.of_backbone(Backbone.load(tiny.name, device="cpu", dtype=torch.bfloat16))
    assert own.agrees(half.probe)
    assert not own.agrees(Clip.of_backbone(Backbone.load(other_folder, device="cpu")).probe)
    assert not own.agrees(Clip.load(clip_folder).probe)


# --- models of transformers -----------------------------------------------------------------------------------------


def test_a_clip_model_gives_the_features_that_it_compares(tiny: Backbone, clip_folder: Path) -> None:
    clip, model = Clip.load(clip_folder), CLIPModel.from_pretrained(clip_folder).eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1  # the tower's own size
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        theirs = model(input_ids=tiny.token_ids(CAPTIONS[:3]), pixel_values=((images + 1) / 2 - mean) / std)
    torch.testing.assert_close(clip.captions(CAPTIONS[:3]), theirs.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.pictures(images), theirs.image_embeds, atol=1e-5, rtol=0)
    assert clip.threshold == 0.85


def test_pictures_of_any_size_are_cropped_as_clip_crops_them(clip_folder: Path) -> None:
    clip, model = Clip.load(clip_folder), CLIPModel.from_pretrained(clip_folder).eval()
    gradient = np.asarray(Image.linear_gradient("L").convert("RGB").resize((90, 60)))
    pictures = [gradient, np.ascontiguousarray(gradient.transpose(1, 0, 2)), gradient[:40, :40]]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    with torch.no_grad():
        values = processor(pictures, return_tensors="pt").pixel_values
        theirs = model.visual_projection(model.vision_model(values).pooler_output)
    cosines = torch.nn.functional.cosine_similarity(clip.pictures(pictures), theirs, dim=1)
    assert cosines.min() > 0.9999


def test_a_model_that_lacks_a_weight_is_refused_by_the_name_of_the_weight(clip_folder: Path) -> None:
    file = clip_folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.startswith("vision_model.encoder"))
    save_file({key: weight for key, weight in weights.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=f"lacks weights of a CLIPModel.*{name}"):
        Clip.load(clip_folder)


def test_what_cannot_be_embedded_is_said(tiny: Backbone, tmp_path: Path, make_subject: Callable) -> None:
    with pytest.raises(OptionError, match="has no image tower, so that pictures cannot be embedded"):
        Clip.of_backbone(tiny).pictures(make_subject().pictures)
    with pytest.raises(
        BackboneError, match=r"There is no model .*nowhere' here. Give a folder in transformers' layout"
    ):
        Clip.load(tmp_path / "nowhere")


# --- pocket and folders like it -------------------------------------------------------------------------------------


def test_a_model_folder_with_an_image_encoder_is_a_clip(pipeline_folder: Path) -> None:
    clip = Clip.load(pipeline_folder)
    assert clip.captions(CAPTIONS).shape == (5, 16)
    assert clip.pictures(torch.zeros(2, 3, 64, 64)).shape == (2, 16)
    assert clip.threshold == 0.4


@pytest.mark.parametrize("part", [PROJECTION_FILE, "image_encoder"])
def test_a_model_folder_without_a_part_is_named(part: str, pipeline_folder: Path) -> None:
    (pipeline_folder / part).rename(pipeline_folder / "elsewhere")
    with pytest.raises(BackboneError, match=f"has no {part}"):
        Clip.load(pipeline_folder)


@pytest.mark.parametrize("content", [b"torn", save({"projection": torch.eye(16)})], ids=["damaged", "misnamed"])
def test_a_projection_that_cannot_be_read_is_named(content: bytes, pipeline_folder: Path) -> None:
    (pipeline_folder / PROJECTION_FILE).write_bytes(content)
    with pytest.raises(BackboneError, match=rf"{PROJECTION_FILE} holds no matrix '{PROJECTION}' that can be read"):
        Clip.load(pipeline_folder)


def test_pockets_clip_embeds_captions_as_pocket_does() -> None:
    clip, text = Clip.load("pocket"), Clip.of_backbone(Backbone.load("pocket", device="cpu"))
    assert torch.equal(clip.captions(CAPTIONS), text.captions(CAPTIONS))
    assert text.threshold == clip.threshold < 0.85


def test_a_picture_is_nearer_to_its_own_caption_than_to_others() -> None:
    pictures, captions = pool(64)
    clip = Clip.load("pocket")
    similarity = clip.pictures(pictures) @ clip.captions(captions).T
    own = similarity.diagonal()[:, None]
    beaten = (similarity < own).float().sum(1) / (len(captions) - 1)
    assert beaten.mean() > 0.95  # one half by chance


def test_vectors_have_length_one_and_do_not_depend_on_the_company() -> None:
    pictures, captions = pool(4)
    clip = Clip.load("pocket")
    for embed, batch in ((clip.captions, captions), (clip.pictures, pictures)):
        together = embed(batch)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(together[:1], embed(batch[:1]), atol=1e-4, rtol=0)


def test_pictures_of_another_size_are_scaled() -> None:
    pictures, _ = pool(2)
    clip = Clip.load("pocket")
    larger = [np.kron(picture, np.ones((2, 2, 1), dtype=np.uint8)) for picture in pictures]
    assert (clip.pictures(pictures) * clip.pictures(larger)).sum(1).min() > 0.95


def test_loading_the_towers_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    pictures, captions = pool(1)
    clip = Clip.load("pocket")
    clip.pictures(pictures)
    clip.captions(captions)
    assert capfd.readouterr() == ("", "")
