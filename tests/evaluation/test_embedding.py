from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from making import make_clip
from moongate.backbone import Backbone
from moongate.errors import BackboneError, OptionError
from moongate.evaluation.networks.embedding import Encoder

CAPTIONS = ["photo of a dog", "cat", "drawing of a red chair on the beach", "", "very " * 40]


@pytest.fixture
def clip_folder(tiny: Backbone, tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip", tiny)


def test_captions_are_the_unit_features_of_their_end_whatever_their_company(tiny: Backbone) -> None:
    vectors = Encoder.of_backbone(tiny).captions(CAPTIONS)
    assert (vectors.shape, vectors.dtype) == ((5, 16), np.float32)
    with torch.no_grad():
        ids, features = tiny.token_ids(CAPTIONS), tiny.encode_text(CAPTIONS).features
    for vector, row, caption_ids in zip(vectors, features, ids, strict=True):
        end = row[caption_ids.tolist().index(tiny.tokenizer.eos_token_id)]
        np.testing.assert_allclose(vector, end / end.norm(), atol=1e-5)


def test_a_backbone_that_brings_a_projection_embeds_captions_in_the_space_of_pictures(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Encoder.of_backbone(tiny).captions(CAPTIONS)
    projection = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(tiny, "caption_projection", projection)
    projected = plain @ projection.numpy().T
    expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(Encoder.of_backbone(tiny).captions(CAPTIONS), expected, atol=1e-5)


def test_a_clip_model_embeds_captions_and_pictures_in_its_shared_space(tiny: Backbone, clip_folder: Path) -> None:
    encoder = Encoder.load(str(clip_folder))
    model = CLIPModel.from_pretrained(clip_folder).eval()
    ids = tiny.token_ids(CAPTIONS[:3])
    with torch.no_grad():
        theirs = model(input_ids=ids, pixel_values=torch.zeros(1, 3, 32, 32)).text_embeds
    np.testing.assert_allclose(encoder.captions(CAPTIONS[:3]), theirs, atol=1e-5)
    red, wide = np.full((40, 50, 3), (255, 0, 0), dtype=np.uint8), np.zeros((32, 90, 3), dtype=np.uint8)
    pictures = encoder.pictures([red, wide])
    np.testing.assert_allclose(np.linalg.norm(pictures, axis=1), 1, atol=1e-5)
    assert pictures.shape == (2, 8)
    assert encoder.threshold == 0.85


def test_an_encoder_knows_its_own_probe_in_any_precision_and_no_other(
    tiny: Backbone, other_folder: Path, clip_folder: Path
) -> None:
    mine = Encoder.of_backbone(tiny)
    half = Encoder.of_backbone(Backbone.load(tiny.name, device="cpu", dtype=torch.bfloat16))
    assert mine.agrees(half.probe)
    assert not mine.agrees(Encoder.of_backbone(Backbone.load(other_folder, device="cpu")).probe)
    assert not mine.agrees(Encoder.load(str(clip_folder)).probe)


def test_what_cannot_be_embedded_is_said(tiny: Backbone, tmp_path: Path, make_subject: Callable) -> None:
    with pytest.raises(OptionError, match="has no image tower to embed pictures with"):
        Encoder.of_backbone(tiny).pictures(make_subject().pictures)
    with pytest.raises(BackboneError, match=r"CLIP model .*nowhere' cannot be loaded"):
        Encoder.load(str(tmp_path / "nowhere"))
