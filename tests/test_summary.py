import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from making import make_concept
from moongate.backbone import Backbone
from moongate.compression import compress
from moongate.concept import Concept
from moongate.summary import FORMAT, is_concept, read_summary
from moongate.tensor_bytes import read_header
from moongate.tensor_files import CHECKSUM, read_tensors, safetensors_bytes


@pytest.mark.parametrize("kind", ["trained", "compressed", "merged"])
def test_a_summary_says_what_the_loaded_concept_says(tiny: Backbone, tmp_path: Path, kind: str) -> None:
    concept = make_concept(tiny)
    if kind == "compressed":
        concept = compress(concept).concept
    if kind == "merged":
        concept = replace(concept, kept={"features": torch.ones(2, 3), next(iter(concept.deltas)): torch.ones(2, 4)})
    path = concept.save(tmp_path / "bear.safetensors")
    summary, loaded = read_summary(path), Concept.load(path)
    assert summary is not None
    assert summary.facts == json.loads(json.dumps(loaded.to_json()))
    assert summary.hash == loaded.hash
    assert summary.fingerprint == loaded.fingerprint
    assert sorted(summary.shapes) == sorted(change.shape for change in loaded.deltas.values())
    ranks = [change.rank for change in loaded.deltas.values() if change.rank is not None]
    assert sorted(summary.ranks) == sorted(ranks)


def test_what_is_no_whole_concept_file_of_ours_has_no_summary(tiny: Backbone, tmp_path: Path) -> None:
    path = make_concept(tiny).save(tmp_path / "bear.safetensors")
    whole = path.read_bytes()
    tensors, texts = read_tensors(path)
    save_file(tensors, tmp_path / "unchecked.safetensors", {k: v for k, v in texts.items() if k != CHECKSUM})
    save_file(tensors, tmp_path / "other.safetensors", {"format": "pt"})
    (tmp_path / "newer.safetensors").write_bytes(safetensors_bytes(tensors, {**texts, "version": "99"}))
    (tmp_path / "damaged.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (tmp_path / "cut.safetensors").write_bytes(whole[:-9])
    (tmp_path / "short.safetensors").write_bytes(whole[:20])
    torch.save({}, tmp_path / "pickle.bin")
    for file in (*(file for file in tmp_path.iterdir() if file != path), tmp_path / "nowhere", tmp_path):
        assert read_summary(file) is None, file
    assert read_summary(path) is not None


def test_a_concept_file_is_told_by_its_header(tiny: Backbone, tmp_path: Path) -> None:
    path = make_concept(tiny).save(tmp_path / "bear.safetensors")
    assert read_header(path)["__metadata__"]["format"] == FORMAT
    assert is_concept(path)
    (tmp_path / "text.safetensors").write_text("a text of more than eight characters")
    assert not is_concept(tmp_path / "text.safetensors")
    assert not is_concept(tmp_path)
