import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration

from moongate.annotation import blip_describer, clip_describer
from moongate.backbone import Backbone
from moongate.data.pictures import read_picture
from moongate.errors import BackboneError, OptionError
from moongate.evaluation import Clip
from moongate.pocket import example

PICTURE = np.full((40, 60, 3), 128, dtype=np.uint8)


def test_pockets_clip_names_the_places_of_an_example() -> None:
    chosen = example("teddyBear")
    photos = sorted(chosen.training.glob("*.webp"))
    found = clip_describer(Clip.load(), chosen.category)([read_picture(photo) for photo in photos])
    captions = [photo.with_suffix(".txt").read_text().strip() for photo in photos]
    right = [text.endswith(described.found["place"]) for described, text in zip(found, captions, strict=True)]
    assert sum(right) >= 4  # one in 15 by chance
    assert all(
        described.caption == f"{described.found['style']} of a {{}} {described.found['place']}" for described in found
    )


def test_the_color_is_in_the_caption_only_on_request() -> None:
    photo = read_picture(sorted(example("teddyBear").training.glob("*.webp"))[0])
    (plain,), (colored,) = (
        clip_describer(Clip.load(), "teddy bear", says_color=flag)([photo]) for flag in (False, True)
    )
    assert plain.found["color"] not in plain.caption
    assert colored.caption == plain.caption.replace("a {}", f"a {colored.found['color']} {{}}").replace(
        "a orange", "an orange"
    )


def test_a_model_without_an_image_tower_is_refused(tiny: Backbone) -> None:
    with pytest.raises(OptionError, match="has no image tower"):
        clip_describer(Clip.of_backbone(tiny), "dog")


def tiny_blip(folder: Path, *, says: str) -> Path:
    """Write a random BLIP whose decoder says one word again and again."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "beach"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(
            text_config={**sizes, **ids, "vocab_size": len(words), "encoder_hidden_size": 16},
            vision_config={**sizes, "image_size": 32, "patch_size": 16},
            projection_dim=16,
        )
    )
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[words.index(says)] = 100.0
    model.save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_the_category_in_a_sentence_of_blip_becomes_the_place_of_the_subject(tmp_path: Path) -> None:
    folder = tiny_blip(tmp_path / "blip", says="dog")
    (dog,) = blip_describer(folder, "dog")([PICTURE])
    (cat,) = blip_describer(folder, "cat")([PICTURE])
    assert dog.found["sentence"].startswith("dog dog")
    assert dog.caption == dog.found["sentence"].replace("dog", "{}", 1)
    assert cat.caption == f"photo of a {{}}, {cat.found['sentence']}"


def test_a_folder_that_is_no_blip_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="There is no folder"):
        blip_describer(tmp_path / "none", "dog")
    with pytest.raises(OptionError, match=r"lacks config.json, tokenizer_config.json, model.safetensors of a blip"):
        blip_describer(tmp_path, "dog")
    folder = tiny_blip(tmp_path / "blip", says="dog")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(OptionError, match="model of type 'vit'; this needs one of type 'blip'"):
        blip_describer(folder, "dog")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(OptionError, match="is not the configuration of a model"):
        blip_describer(folder, "dog")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        blip_describer(folder, "dog")
