import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from making import make_concept
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.errors import ConceptFileError
from moongate.tensor_files import CHECKSUM, checksum, read_tensors, safetensors_bytes


def test_tensors_of_all_types_are_read_as_they_were_written(tmp_path: Path) -> None:
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in types}
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "a.safetensors", {"name": "bear"})
    read, header = read_tensors(tmp_path / "a.safetensors")
    assert header == {"name": "bear"}
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_tensors_that_share_memory_are_written_as_equal_ones_apart() -> None:
    rows = torch.arange(6.0).reshape(2, 3)
    shared = {"a": rows, "b": rows, "c": rows[0], "d": rows[1], "e": torch.zeros(2, 0), "f": torch.zeros(0, 3)}
    apart = {name: tensor.clone() for name, tensor in shared.items()}
    assert safetensors_bytes(shared, {"name": "bear"}) == safetensors_bytes(apart, {"name": "bear"})


def test_numbers_of_other_types_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    with pytest.raises(ConceptFileError, match=r"'a' in .* of the type F8_E4M3"):
        read_tensors(tmp_path / "a.safetensors")


def test_the_checksum_depends_on_names_types_shapes_and_text_and_on_no_order() -> None:
    a, b = torch.zeros(4), torch.ones(2, 2)
    same = checksum({"a": a, "b": b})
    assert same == checksum({"b": b, "a": a})
    others = ({"b": a, "a": b}, {"a": a.half(), "b": b}, {"a": a, "b": b.reshape(4)}, {"a": a})
    assert len({same, checksum({"a": a, "b": b}, "text"), *map(checksum, others)}) == 6


def test_a_concept_file_with_any_flipped_bit_is_named_or_read_the_same(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny)
    path = concept.save(tmp_path / "bear.safetensors")
    whole, random, read = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[random.integers(len(damaged))] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(ConceptFileError):
            assert Concept.load(path).file_bytes == whole  # a flip in the checksum's own name leaves the content whole
            read += 1
    assert read < 5


def test_a_concept_file_without_a_checksum_is_read_and_has_the_same_hash(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny)
    concept.save(tmp_path / "new.safetensors")
    tensors, header = read_tensors(tmp_path / "new.safetensors")
    del header[CHECKSUM]
    save_file(tensors, tmp_path / "old.safetensors", header)
    assert Concept.load(tmp_path / "old.safetensors").hash == Concept.load(tmp_path / "new.safetensors").hash


def test_a_loaded_concept_does_not_change_with_its_file(tiny: Backbone, tmp_path: Path) -> None:
    path = make_concept(tiny).save(tmp_path / "bear.safetensors")
    concept = Concept.load(path)
    before = {name: change.full().clone() for name, change in concept.deltas.items()}
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff" * 5000)
        file.truncate(10_000)
    assert all(torch.equal(change.full(), before[name]) for name, change in concept.deltas.items())


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [0, 10**9], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [1e30], "data_offsets": [0, 4]},
    ],
)
def test_tensors_that_cannot_be_are_an_error_of_ours(entry: dict[str, object], tmp_path: Path) -> None:
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(ConceptFileError, match="damaged or not a safetensors file"):
        read_tensors(tmp_path / "a.safetensors")


def test_a_file_of_any_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.truncate(100 * 2**30)  # takes no room on the disk
    with pytest.raises(ConceptFileError, match="more than 16 GB"):
        read_tensors(tmp_path / "a.safetensors")
