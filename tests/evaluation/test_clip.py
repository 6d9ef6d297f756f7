import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moongate import pocket
from moongate.errors import BackboneError
from moongate.evaluation.networks.clip import PocketClip


def pool(count: int) -> tuple[torch.Tensor, list[str]]:
    folder = pocket.pool_folder()
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()][:count]
    pictures = np.stack([np.asarray(Image.open(folder / row["file_name"]).convert("RGB")) for row in rows])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, [row["caption"] for row in rows]


def test_a_picture_is_nearer_to_its_own_caption_than_to_others() -> None:
    images, captions = pool(64)
    clip = PocketClip()
    similarity = clip.image_features(images) @ clip.caption_features(captions).T
    own = similarity.diagonal()[:, None]
    beaten = (similarity < own).float().sum(1) / (len(captions) - 1)
    assert beaten.mean() > 0.95  # one half by chance


def test_features_have_length_one_and_do_not_depend_on_the_company() -> None:
    images, captions = pool(4)
    clip = PocketClip()
    together = clip.caption_features(captions)
    assert torch.allclose(together.norm(dim=1), torch.ones(4), atol=1e-5)
    assert torch.allclose(together[:1], clip.caption_features(captions[:1]), atol=1e-4)
    pictures = clip.image_features(images)
    assert torch.allclose(pictures[:1], clip.image_features(images[:1]), atol=1e-4)
    assert pictures.shape == together.shape


def test_pictures_of_another_size_are_scaled() -> None:
    images, _ = pool(2)
    clip = PocketClip()
    larger = torch.nn.functional.interpolate(images, scale_factor=2, mode="nearest")
    cosines = (clip.image_features(images) * clip.image_features(larger)).sum(1)
    assert cosines.min() > 0.95


def test_reading_the_towers_left_two_progress_bars_in_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    images, captions = pool(1)
    clip = PocketClip()
    clip.image_features(images)
    clip.caption_features(captions)
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_the_image_tower_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="has no image_encoder"):
        PocketClip(folder=tmp_path).image_features(torch.zeros(1, 3, 128, 128))
