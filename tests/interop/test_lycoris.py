"""LoHa and LoKr against sums written out, and against PEFT's own."""

import copy
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import foreign_files as foreign
from foreign_concepts import denoiser
from moongate import interop
from moongate.backbone import Backbone
from moongate.concept import LowRank
from moongate.errors import ConceptFileError
from moongate.interop import lycoris

Shape = tuple[int, int]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loha(shape: Shape, ranks: tuple[int, int]) -> tuple[dict[str, Tensor], Tensor]:
    """A layer's tensors, and its change before scaling: sums over both ranks, written out."""
    (rows, columns), tensors = shape, {}
    for number, rank in enumerate(ranks, start=1):
        tensors[f"hada_w{number}_a"] = random(rows, rank, seed=number)
        tensors[f"hada_w{number}_b"] = random(rank, columns, seed=10 + number)
    change = torch.zeros(shape)
    for i in range(ranks[0]):
        for j in range(ranks[1]):
            first = torch.outer(tensors["hada_w1_a"][:, i], tensors["hada_w1_b"][i])
            change += first * torch.outer(tensors["hada_w2_a"][:, j], tensors["hada_w2_b"][j])
    return tensors, change


def lokr(shape: Shape, *, factored: tuple[bool, bool], rank: int = 1) -> tuple[dict[str, Tensor], Tensor]:
    """A layer's tensors, and its change before scaling, block by block."""
    small, large = (4, 2), (shape[0] // 4, shape[1] // 2)
    tensors, matrices = {}, []
    for number, (size, is_factored) in enumerate(zip((small, large), factored, strict=True), start=1):
        up, down = random(size[0], rank, seed=number), random(rank, size[1], seed=10 + number)
        matrices.append(up @ down if is_factored else random(*size, seed=20 + number))
        tensors |= (
            {f"lokr_w{number}_a": up, f"lokr_w{number}_b": down} if is_factored else {f"lokr_w{number}": matrices[-1]}
        )
    change = torch.zeros(shape)
    for i in range(small[0]):
        for j in range(small[1]):
            rows, columns = slice(i * large[0], (i + 1) * large[0]), slice(j * large[1], (j + 1) * large[1])
            change[rows, columns] = matrices[0][i, j] * matrices[1]
    return tensors, change


def write(path: Path, backbone: Backbone, make: object, *, alpha: float | None = 1.0) -> dict[str, Tensor]:
    """Write a file with such a layer for each key and value; return the changes before scaling by our name."""
    tensors, changes = {}, {}
    for name, weight in backbone.weights("cross-attention-kv").items():
        layer, changes[name] = make(tuple(weight.shape))
        module = "lora_unet_" + name.removeprefix("unet.").removesuffix(".weight").replace(".", "_")
        tensors |= {f"{module}.{key}": value.clone() for key, value in layer.items()}
        if alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return changes


@pytest.mark.parametrize("ranks", [(1, 1), (2, 2), (1, 2), (8, 8)])
@pytest.mark.parametrize("alpha", [None, 1.0, 3.0])
def test_loha_is_read_exactly(tiny: Backbone, tmp_path: Path, ranks: tuple[int, int], alpha: float | None) -> None:
    expected = write(tmp_path / "loha", tiny, lambda shape: loha(shape, ranks), alpha=alpha)
    concept = interop.read(tmp_path / "loha", base=tiny).concept
    scale = 1.0 if alpha is None else alpha / ranks[0]
    assert concept.deltas.keys() == expected.keys()
    for name, change in expected.items():
        assert torch.allclose(concept.deltas[name].full(), scale * change, rtol=1e-5, atol=1e-5)
    if ranks == (1, 1):
        assert all(isinstance(change, LowRank) and change.rank == 1 for change in concept.deltas.values())


@pytest.mark.parametrize("factored", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("alpha", [None, 1.0, 3.0])
def test_lokr_is_read_exactly(tiny: Backbone, tmp_path: Path, factored: tuple[bool, bool], alpha: float | None) -> None:
    """LyCORIS ignores the alpha when both matrices are stored whole."""
    expected = write(tmp_path / "lokr", tiny, lambda shape: lokr(shape, factored=factored, rank=2), alpha=alpha)
    concept = interop.read(tmp_path / "lokr", base=tiny).concept
    scale = 1.0 if alpha is None or not any(factored) else alpha / 2
    for name, change in expected.items():
        assert torch.allclose(concept.deltas[name].full(), scale * change, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(r=4, alpha=3, init_weights=False),
        peft.LoHaConfig(r=4, alpha=3, alpha_pattern={"to_k": 5}, rank_pattern={"to_v": 2}, init_weights=False),
        peft.LoKrConfig(r=4, alpha=3, init_weights=False),
        peft.LoKrConfig(r=64, alpha=3, rank_pattern={"to_v": 32}, init_weights=False),
        peft.LoKrConfig(r=1, alpha=3, decompose_both=True, decompose_factor=4, init_weights=False),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_peft_s_loha_and_lokr_are_read_as_peft_merges_them(
    tiny: Backbone, tmp_path: Path, config: peft.PeftConfig
) -> None:
    config = copy.deepcopy(config)
    config.target_modules = ["attn2.to_k", "attn2.to_v"]
    torch.manual_seed(0)
    model = peft.get_peft_model(copy.deepcopy(tiny.unet), config)
    model.save_pretrained(tmp_path / "adapter")
    concept = interop.read(tmp_path / "adapter", base=tiny).concept
    assert len(concept.deltas) == 14
    for name, change in concept.deltas.items():
        layer = model.base_model.model.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
        expected = layer.get_delta_weight("default").detach()
        assert torch.allclose(change.full(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("OFT or BOFT", {"oft_blocks": torch.ones(2, 4, 4)}),
        ("(IA)3", {"weight": torch.ones(16), "on_input": torch.zeros(1)}),
        ("GLoRA", {"a1.weight": torch.ones(2, 2), "b1.weight": torch.ones(2, 2)}),
        ("biases", {"diff_b": torch.ones(16)}),
        ("DoRA", {"hada_w1_a": torch.ones(16, 1), "dora_scale": torch.ones(16, 1)}),
    ],
)
def test_layers_of_other_kinds_are_named_and_the_other_layers_are_read(
    tiny: Backbone, tmp_path: Path, kind: str, tensors: dict[str, Tensor]
) -> None:
    before = denoiser(tiny)
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    plain = foreign.lora(tmp_path / "plain", before, style="kohya", alpha=1.0)
    kept = {key: value for key, value in load_file(plain).items() if not key.startswith(f"{module}.")}
    odd = {f"{module}.{key}": value for key, value in {**tensors, "alpha": torch.tensor(1.0)}.items()}
    save_file(kept | odd, tmp_path / "mixed")
    imported = interop.read(tmp_path / "mixed", base=tiny)
    assert len(imported.concept.deltas) == 13
    assert kind in imported.notes[0]
    save_file(odd, tmp_path / "alone")
    with pytest.raises(ConceptFileError, match=kind.split()[0].replace("(", r"\(").replace(")", r"\)")):
        interop.read(tmp_path / "alone", base=tiny)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"hada_w1_a": torch.ones(16, 2), "hada_w1_b": torch.ones(2, 16)}, "but not hada_w2_a"),
        ({"lokr_w1": torch.ones(4, 2)}, "but not lokr_w2_a"),
        ({"lokr_w1_a": torch.ones(4, 2), "lokr_w1_b": torch.ones(3, 2)}, "do not fit together"),
        ({"lokr_w1": torch.ones(4), "lokr_w2": torch.ones(4, 8)}, "a matrix has two"),
    ],
)
def test_a_layer_with_missing_or_odd_tensors_is_named(
    tiny: Backbone, tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{module}.{key}": value for key, value in tensors.items()}, tmp_path / "odd")
    with pytest.raises(ConceptFileError, match=message):
        interop.read(tmp_path / "odd", base=tiny)


@pytest.mark.parametrize(
    "shapes",
    [
        {"hada_w1_a": (9000, 70), "hada_w1_b": (70, 20_000), "hada_w2_a": (9000, 90), "hada_w2_b": (90, 20_000)},
        {"lokr_w1": (300, 300), "lokr_w2": (300, 300)},
        {"lokr_w1_a": (20_000, 1), "lokr_w1_b": (1, 20_000), "lokr_w2": (1, 1)},
        {"lokr_w1": (1, 10_000), "lokr_w2_a": (1_000_000, 1), "lokr_w2_b": (1, 10_000)},
    ],
    ids=["loha", "lokr", "lokr of factors", "lokr of a factor"],
)
def test_small_matrices_that_stand_for_a_giant_one_are_not_multiplied_out(shapes: dict[str, tuple[int, int]]) -> None:
    product = lycoris.loha if "hada_w1_a" in shapes else lycoris.lokr
    with pytest.raises(ConceptFileError, match="No model has them"):
        product("layer", {key: torch.zeros(shape) for key, shape in shapes.items()})


def test_small_layers_that_stand_for_more_numbers_than_any_model_has_are_refused_before_they_are_computed(
    tmp_path: Path,
) -> None:
    keys = [f"lora_unet_down_blocks_{number}_attentions_0_transformer_blocks_0_attn2_to_k" for number in range(10)]
    lokr = {f"{key}.{part}": torch.ones(90, 90) for key in keys for part in ("lokr_w1", "lokr_w2")}
    loha = {
        f"{key}.hada_w{number}_{part}": torch.ones(9000, 1) if part == "a" else torch.ones(1, 9000)
        for key in keys
        for number in (1, 2)
        for part in "ab"
    }
    for layers in (lokr, loha):
        save_file(layers, tmp_path / "lora")
        with pytest.raises(
            ConceptFileError, match="lora cannot be read. The small matrices of the file stand for more"
        ):
            interop.read(tmp_path / "lora")
