import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from moongate.backbone import Backbone
from moongate.merging import neutral
from moongate.merging.neutral import (
    held_out_features,
    held_out_rows,
    neutral_captions,
    regularization_gram,
    weighted_grams,
)
from moongate.ranks import Ranks


def test_the_gram_matrix_is_kept_for_the_same_captions_alone(tiny: Backbone, tmp_path: Path) -> None:
    captions = ["photo of a dog", "a red chair", "teddy bear on the beach"]
    first = regularization_gram(tiny, captions, cache=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    torch.testing.assert_close(regularization_gram(tiny, captions, cache=tmp_path), first)
    torch.testing.assert_close(regularization_gram(tiny, captions), first)
    regularization_gram(tiny, [*captions, "a cat"], cache=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_each_text_encoder_has_a_gram_matrix_of_its_own_in_one_cache(
    tiny: Backbone, other_folder: Path, tmp_path: Path
) -> None:
    captions = ["photo of a dog", "a red chair", "teddy bear on the beach"]
    other = Backbone.load(other_folder, device="cpu")
    first, second = (regularization_gram(backbone, captions, cache=tmp_path) for backbone in (tiny, other))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, regularization_gram(other, captions))
    torch.testing.assert_close(regularization_gram(tiny, captions, cache=tmp_path), first)


def test_padding_counts_once_whatever_its_length(tiny: Backbone) -> None:
    """By hand, for one caption: start, words and end in full, the padding by its mean square, then the empty prompt."""
    caption = "a red chair"
    gram = regularization_gram(tiny, ["left out", caption])
    with torch.no_grad():
        text, empty = tiny.encode_text([caption, ""]).features.double()
    expected = text[:5].T @ text[:5] + text[5:].T @ text[5:] / 11
    expected += 0.1 * (empty[:2].T @ empty[:2] + empty[2:].T @ empty[2:] / 14)
    torch.testing.assert_close(gram, expected)


def test_the_neutral_captions_are_a_thousand_different_ones() -> None:
    captions = neutral_captions(["photo of my own garden", " ", neutral_captions()[0]])
    assert len(captions) == len(set(captions)) == 1001
    assert all(caption == caption.strip() for caption in captions)


def test_a_cache_that_is_damaged_or_cannot_be_written_does_not_stop_a_merge(tiny: Backbone, tmp_path: Path) -> None:
    captions = ["photo of a dog", "a red chair"]
    expected = regularization_gram(tiny, captions, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1  # a bit of the last number: the file can be read, but its checksum does not match
    for damaged in (whole[:100], bytes(flipped)):
        file.write_bytes(damaged)
        assert torch.equal(regularization_gram(tiny, captions, cache=tmp_path / "cache"), expected)
        assert file.read_bytes() == whole
    torch.testing.assert_close(regularization_gram(tiny, captions, cache=file / "below"), expected)


def test_processes_that_share_a_cache_compute_the_gram_matrix_once(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[list[str]] = []

    def slow(_: Backbone, captions: list[str], ranks: Ranks) -> torch.Tensor:
        time.sleep(0.2)
        computed.append(captions)
        return torch.eye(16, dtype=torch.float64)

    monkeypatch.setattr(neutral, "_gram", slow)
    with ThreadPoolExecutor(3) as pool:
        grams = list(pool.map(lambda _: regularization_gram(tiny, ["left out", "a dog"], cache=tmp_path), range(3)))
    assert computed == [["a dog"]]
    assert all(torch.equal(gram, torch.eye(16, dtype=torch.float64)) for gram in grams)


def test_rows_of_held_out_captions_have_their_gram_matrix_and_are_kept(tiny: Backbone, tmp_path: Path) -> None:
    features = held_out_features(tiny, neutral_captions())
    rows = held_out_rows(tiny, neutral_captions(), cache=tmp_path)
    assert len(rows) == tiny.token_widths[0] < len(features)
    torch.testing.assert_close(rows.T @ rows, features.T @ features)
    (file,) = tmp_path.glob("held-out-*.safetensors")
    written = file.stat().st_mtime_ns
    assert torch.equal(held_out_rows(tiny, neutral_captions(), cache=tmp_path), rows)
    assert file.stat().st_mtime_ns == written


def test_held_out_captions_are_no_part_of_the_gram_matrix(tiny: Backbone) -> None:
    captions = [f"a {word}" for word in ("dog", "cat", "bear", "chair", "red", "an", "in", "on", "the", "far", "away")]
    other = ["a small beach", *captions[1:10], "a drawing"]
    assert torch.equal(regularization_gram(tiny, captions), regularization_gram(tiny, other))
    with torch.no_grad():
        first, last = tiny.encode_text(["a dog", "a away"]).features.double()
    expected = torch.cat([first[:4], last[:4]])
    torch.testing.assert_close(held_out_features(tiny, captions), expected, atol=1e-5, rtol=1e-5)


def test_where_no_concept_moves_a_neutral_caption_all_of_them_count_alike(tiny: Backbone) -> None:
    captions = ["left out", "a red chair", "dog"]
    for gram in weighted_grams(tiny, captions, {"no concept": [], "no change": [torch.zeros(8, 16)]}).values():
        torch.testing.assert_close(gram, regularization_gram(tiny, captions))
