"""LoRA in kohya's keys."""

from pathlib import Path

from safetensors.torch import load_file

from making import make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.merging import merge


def test_a_merged_concept_is_written_at_its_own_rank_and_nothing_is_lost(tiny: Backbone, tmp_path: Path) -> None:
    merged = merge(tiny, [make_concept(tiny, low_rank=False)]).concept
    written = interop.write(merged, tmp_path / "lora", to="kohya")
    assert written.notes == ()
    tensors = load_file(tmp_path / "lora" / "lora.safetensors")
    alphas = {key.removesuffix(".alpha"): float(value) for key, value in tensors.items() if key.endswith(".alpha")}
    assert alphas == {key: tensors[f"{key}.lora_down.weight"].shape[0] for key in alphas}
    assert len(alphas) == len(merged.deltas)
    assert interop.read(tmp_path / "lora").concept.hash == merged.hash
