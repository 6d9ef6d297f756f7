from pathlib import Path

import pytest
import torch

from making import make_concept
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.errors import ConceptFileError, OptionError
from recipe.taught import TaughtOptions, main, rounded


def test_numbers_are_rounded_to_ten_bits_of_their_mantissa() -> None:
    numbers = torch.tensor([1.0, -1.0, 1 + 2**-10, 1 + 2**-12, 3.14159, 0.0])
    assert torch.equal(rounded(numbers)[:4], torch.tensor([1.0, -1.0, 1 + 2**-10, 1.0]))
    assert (rounded(numbers) - numbers).abs().max() <= 2**-10  # half a bit, of numbers up to 4
    assert not (rounded(numbers).view(torch.int32) & (2**13 - 1)).any()


def test_small_concepts_are_written_where_there_is_neither_a_run_nor_pictures(tiny: Backbone, tmp_path: Path) -> None:
    file = make_concept(tiny, low_rank=False).save(tmp_path / "bear.safetensors")
    main(TaughtOptions(concepts=(file,)))
    written = tmp_path / "small" / "bear.safetensors"
    assert written.stat().st_size < file.stat().st_size
    assert Concept.load(written).tokens.keys() == {"<bear>"}


def test_what_is_missing_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConceptFileError, match="nowhere"):
        main(TaughtOptions(concepts=(tmp_path / "nowhere.safetensors",)))
    with pytest.raises(OptionError, match=r"There is no folder .*bear.run"):
        main(TaughtOptions(concepts=(), run=tmp_path / "bear.run", pictures=tmp_path))
    with pytest.raises(OptionError, match="Give both --run and --pictures"):
        main(TaughtOptions(concepts=(), pictures=tmp_path))
