import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from conftest import FAMILIES, all_weights, assert_same, make_tiny_model
from moongate.backbone import Backbone
from moongate.data import Subject
from moongate.errors import BackboneError, OptionError, TokenError
from moongate.sampling import SampleOptions, sample
from moongate.training import TrainOptions, train
from moongate.training.method import METHODS
from original_layout import original_weights, write_configuration, write_single_file


def test_the_weights_of_the_paper_are_all_cross_attention_keys_and_values(tiny: Backbone) -> None:
    names = list(tiny.weights("cross-attention-kv"))
    modules = [n for n, m in tiny.unet.named_modules() if n.endswith("attn2")]
    assert len(names) == 2 * len(modules) > 0
    assert all(".attn2.to_k." in name or ".attn2.to_v." in name for name in names)
    assert all(tiny.parameter(name).shape[1] == 16 for name in names)
    assert len(tiny.weights("cross-attention")) == 5 * len(modules)
    with pytest.raises(OptionError, match="Unknown set of weights 'attn'"):
        tiny.weights("attn")


def test_the_fingerprint_survives_rounding_and_tells_bases_apart(
    tiny: Backbone, tiny_folder: Path, other_folder: Path
) -> None:
    half = Backbone.load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    assert half.fingerprint.matches(tiny.fingerprint)
    assert not Backbone.load(other_folder, device="cpu").fingerprint.matches(tiny.fingerprint)


def test_text_is_read_as_plain_diffusers_reads_it(each: Backbone, family_folder: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(family_folder)
    features, negative, *pooled = pipeline.encode_prompt("photo of a dog", device="cpu", num_images_per_prompt=1,
                                                         do_classifier_free_guidance=True)  # fmt: skip
    text, empty = each.encode_text(["photo of a dog"]), each.encode_negative("", 1)
    assert torch.equal(text.features, features)
    assert torch.equal(empty.features, negative)
    assert sum(each.token_widths) == text.features.shape[-1]
    if len(each.encoders) == 1:
        assert text.pooled is None
        assert torch.equal(empty.features, each.encode_text([""]).features)
        return
    assert torch.equal(text.pooled, pooled[0])
    assert torch.equal(empty.pooled, pooled[1])
    assert not empty.features.any()
    assert each.encode_negative("a chair", 2).features.any()


def test_an_empty_prompt_is_read_where_the_model_was_not_trained_on_zeros(family_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(family_folder, tmp_path / "model")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    assert Backbone.load(copy, device="cpu").encode_negative("", 1).features.any()


def test_a_caption_with_a_token_is_summed_up_at_its_end(each: Backbone) -> None:
    """SDXL's configuration makes the model look for the highest id, and a new token's is higher than the end's."""
    caption = "photo of a <bear> bear"
    with each.tokens({"<bear>": each.token_row(20)}):
        ids = each.encoders[-1].token_ids([caption])
        text = each.encode_text([caption])
    ids[ids >= each.encoders[-1].table.num_embeddings] = 20
    plain = each.encoders[-1].model(ids, output_hidden_states=True)
    assert torch.equal(text.features[..., -each.token_widths[-1] :],
                       plain.hidden_states[-2] if text.pooled is not None else plain.last_hidden_state)  # fmt: skip
    if text.pooled is not None:
        assert torch.equal(text.pooled, plain.text_embeds)


def test_size_and_pooled_text_reach_a_denoiser_that_wants_them(each: Backbone) -> None:
    text = each.encode_text(["a dog"])
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    told = []
    handle = each.unet.register_forward_pre_hook(lambda _m, _a, given: told.append(given), with_kwargs=True)
    with handle, torch.no_grad():
        each.predict(noisy[..., :6], torch.tensor([500]), text)
    added = told[0]["added_cond_kwargs"]
    if text.pooled is None:
        assert added is None
    else:
        assert added["time_ids"].tolist() == [[64, 48, 0, 0, 64, 48]]
        assert torch.equal(added["text_embeds"], text.pooled)


def test_a_token_is_used_in_the_block_and_gone_after_it(tiny: Backbone) -> None:
    before = tiny.encode_text(["photo of a <bear> bear"]).features
    row = tiny.token_row(20)
    with tiny.tokens({"<bear>": row}):
        ids = tiny.token_ids(["photo of a <bear> bear"])[0].tolist()
        assert len(tiny.tokenizer) - 1 in ids
        assert tiny.known_tokens == ("<bear>",)
        inside = tiny.encode_text(["photo of a <bear> bear"]).features
        # The same features as when the word were that rare token itself.
        with tiny.tokens({"<copy>": row}):
            assert torch.equal(inside, tiny.encode_text(["photo of a <copy> bear"]).features)
    assert torch.equal(before, tiny.encode_text(["photo of a <bear> bear"]).features)
    assert not torch.equal(before, inside)


def test_gradients_reach_the_row_and_nothing_else(each: Backbone) -> None:
    row = each.token_row(20).requires_grad_(True)
    with each.tokens({"<bear>": row}):
        each.encode_text(["photo of a <bear> bear"]).features.square().sum().backward()
    assert all(part.any() for part in row.grad.split(each.token_widths))
    assert all(weight.grad is None for encoder in each.encoders for weight in encoder.model.parameters())


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("bear", "'bear' is already a word of the tokenizer.*Use a new one such as '<bear1>'"),
        ("<|endoftext|>", "already a word"),
        ("", "is empty or has white space"),
        ("<my bear>", "white space"),
        ("<>", "has nothing inside its brackets. Use a word such as '<bear>'"),
        ("xyz", "has no angle brackets.*'<xyz>'"),
    ],
)
def test_a_token_that_is_no_new_word_is_refused(tiny: Backbone, token: str, message: str) -> None:
    with pytest.raises(TokenError, match=message), tiny.tokens({token: tiny.token_row(20)}):
        pass


@pytest.mark.parametrize(
    ("first", "second"), [("<Rex>", "<rex>"), ("<rex>", "<Rex>"), ("<\u00c9t\u00e9>", "<e\u0301te\u0301>")]
)
def test_tokens_that_the_tokenizer_reads_as_one_word_are_refused_together(
    tiny: Backbone, first: str, second: str
) -> None:
    row = tiny.token_row(30)
    message = f"Two concepts both use the tokens '{first}' and '{second}', one word to the model. Rename one"
    with tiny.tokens({first: row}), pytest.raises(TokenError, match=message):  # noqa: SIM117
        with tiny.tokens({second: row}):
            pass
    with pytest.raises(TokenError, match=message), tiny.tokens({first: row, second: row}):
        pass


def test_the_end_of_a_caption_that_is_not_read_is_given_as_it_was_written(each: Backbone) -> None:
    """The tiny text encoders read 14 tokens between start and end; pieces of words count, a new token is one.

    The end begins with a whole word, part of which may be read.
    """
    assert each.cut_off("red " * 14) == ""
    assert each.cut_off("red " * 13 + "cat, the Dog's beach") == "cat, the Dog's beach"
    assert each.cut_off("red " * 12 + "<bear> cat") != ""
    with each.tokens({"<bear>": each.token_row(20)}):
        assert each.cut_off("red " * 12 + "<bear> cat") == ""
        assert each.cut_off("red " * 14 + "<Bear> cat") == "<Bear> cat"


def test_a_token_that_was_saved_inside_a_model_is_known(tiny_folder: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny_folder)
    pipeline.tokenizer.add_tokens("<bear>")
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))
    pipeline.save_pretrained(tmp_path / "model")
    backbone = Backbone.load(tmp_path / "model", device="cpu")
    assert backbone.unknown_tokens("photo of a <bear>, a <cat> <|endoftext|>") == ["<cat>", "<|endoftext|>"]


def test_a_token_is_known_in_upper_and_lower_case_as_the_tokenizer_reads_it(tiny: Backbone) -> None:
    with tiny.tokens({"<Bear>": tiny.token_row(20)}):
        assert tiny.unknown_tokens("a <BEAR> and a <bear>, a <cat>") == ["<cat>"]
        assert torch.equal(*tiny.token_ids(["a <BEAR>", "a <bear>"]))


def test_two_concepts_with_one_token_are_refused_and_nothing_stays_changed(tiny: Backbone) -> None:
    row = tiny.token_row(20)
    with tiny.tokens({"<bear>": row}), pytest.raises(TokenError, match="both use the token '<bear>'. Rename"):  # noqa: SIM117
        with tiny.tokens({"<bear>": row}):
            pass


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_recovers_the_clean_latents(tiny: Backbone, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([300])
    schedule = DDPMScheduler.from_config(tiny.schedule.config, prediction_type=kind)
    monkeypatch.setattr(tiny, "schedule", schedule)
    target = tiny.target(latents, noise, time)
    alpha = tiny.schedule.alphas_cumprod[300]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    recovered = {
        "epsilon": (noisy - (1 - alpha).sqrt() * target) / alpha.sqrt(),
        "v_prediction": alpha.sqrt() * noisy - (1 - alpha).sqrt() * target,
        "sample": target,
    }[kind]
    torch.testing.assert_close(recovered, latents, atol=1e-5, rtol=1e-5)


def test_a_model_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="There is no model .* here. Give pocket, a folder"):
        Backbone.load(tmp_path / "nowhere", device="cpu")


def test_noise_without_any_signal_at_the_last_step_is_respected(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=0, family="sd2")
    assert Backbone.load(folder, device="cpu").schedule.alphas_cumprod[-1] == 0


def test_the_autoencoder_that_overflows_in_float16_stays_in_float32(family_folder: Path) -> None:
    half = Backbone.load(family_folder, device="cpu", dtype=torch.float16)
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)
    latents = half.encode_images(torch.zeros(1, 3, 64, 64))
    assert half.decode_latents(latents.half()).isfinite().all()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_is_the_same_model(family_folder: Path, each: Backbone, tmp_path: Path, suffix: str) -> None:
    """With its configuration in a folder beside it, or in one that is named."""
    file = write_single_file(family_folder, tmp_path / f"model{suffix}")
    write_configuration(family_folder, tmp_path / "model")
    beside = Backbone.load(file, device="cpu")
    assert_same(all_weights(each), all_weights(beside))
    assert beside.rare_tokens == each.rare_tokens
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    named = Backbone.load(file, config=tmp_path / "elsewhere", device="cpu")
    assert named.fingerprint.matches(each.fingerprint)


class Harmful:
    """Runs code when it is unpickled without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('the code in the pickle was run')",)


def test_single_files_that_cannot_be_used_are_refused_each_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = make_tiny_model(tmp_path / "folder", seed=0, family="sd1")
    file = write_single_file(folder, tmp_path / "model.safetensors")
    configuration = write_configuration(folder, tmp_path / "configuration")
    weights = original_weights(folder)
    torch.save({"state_dict": weights, "callback": Harmful()}, tmp_path / "harmful.ckpt")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:1000])
    lost = next(name for name in weights if "attn2.to_k" in name)
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, tmp_path / "partial.safetensors")
    for name, config, message in (
        ("nowhere.safetensors", None, "There is no file"),
        (
            "model.safetensors",
            None,
            r"weights only; .* not on this machine .* Give a folder with it .--config FOLDER.",
        ),
        ("model.safetensors", tmp_path, "not a folder in diffusers' layout: it has no model_index.json"),
        ("harmful.ckpt", None, "a pickle that contains more than weights, which might run code"),
        ("cut.safetensors", None, "is damaged. Copy or download it again"),
        ("partial.safetensors", configuration, "lacks weights that the configuration in .* lists"),
    ):
        with pytest.raises(BackboneError, match=message):
            Backbone.load(tmp_path / name, config=config, device="cpu")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        Backbone.load(tmp_path / "harmful.ckpt", config=configuration, device="cpu")
    with pytest.raises(BackboneError, match="is not a single file and has its own"):
        Backbone.load(folder, config=configuration, device="cpu")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_folder_that_lacks_a_weight_is_refused_by_its_name(part: str, tmp_path: Path) -> None:
    """Diffusers leaves such weights empty, and transformers fills those of a text encoder with random numbers."""
    folder = make_tiny_model(tmp_path / "model", seed=0, family="sdxl")
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    lost = min(weights)
    first = rf"{part}\.(text_model\.)?{lost.removeprefix('text_model.')}"
    for rest in ({name: weights[name] for name in weights if name != lost}, {**weights, lost: torch.zeros(3, 5)}):
        save_file(rest, file, metadata={"format": "pt"})
        with pytest.raises(BackboneError, match=f"lacks weights that .* lists, .*: {first}|{lost} expected shape"):
            Backbone.load(folder, device="cpu")


def test_loading_a_model_remarks_nothing(tiny_folder: Path) -> None:
    """Importing diffusers' pipelines had transformers advise to install torchvision, once in every run."""
    code = f"from moongate import Backbone; Backbone.load({str(tiny_folder)!r}, device='cpu')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


def test_models_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=0, family="sdxl")
    index = json.loads((folder / "model_index.json").read_text())

    def refused(message: str, **changes: object) -> None:
        (folder / "model_index.json").write_text(json.dumps(index | changes))
        with pytest.raises(BackboneError, match=message):
            Backbone.load(folder, device="cpu")

    refused(
        "is a FluxPipeline, which Moongate cannot use. It takes SD 1.x, SD 2.x and SDXL", _class_name="FluxPipeline"
    )
    config = folder / "vae" / "config.json"
    plain = config.read_text()
    config.write_text(json.dumps(json.loads(plain) | {"latents_mean": [0.1] * 4, "latents_std": [1.0] * 4}))
    refused("shifts its latents and was trained with another kind of noise")
    config.write_text(plain)
    nothing = [None, None]
    refused("has no text_encoder, as a refiner has none", text_encoder=nothing, tokenizer=nothing)
    UNet2DConditionModel(
        **{**json.loads((folder / "unet" / "config.json").read_text()), "in_channels": 9}
    ).save_pretrained(folder / "unet")
    refused("takes 9 channels and returns 4, as one for inpainting")


KV = {"sd1": (32, 19_169_280), "sd2": (32, 25_559_040), "sdxl": (140, 340_787_200)}
UNETS = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
}
"""The denoisers of the families in full size, where they differ from the library's defaults."""


@pytest.mark.parametrize("family", FAMILIES)
def test_in_full_size_the_keys_and_values_are_as_many_as_known(
    family: str, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        monkeypatch.setattr(tiny, "unet", UNet2DConditionModel(sample_size=64, **UNETS[family]))
    weights = tiny.weights("cross-attention-kv")
    assert (len(weights), sum(weight.numel() for weight in weights.values())) == KV[family]
    monkeypatch.undo()


@pytest.mark.slow
def test_stable_diffusion_in_full_size_trains_and_draws_on_a_cpu(make_subject: Callable[..., Subject]) -> None:
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "full_size.py"))
    backbone = benchmark["full_size_backbone"]()
    weights = backbone.weights("cross-attention-kv")
    assert (len(weights), sum(weight.numel() for weight in weights.values())) == KV["sd1"]
    assert sum(weight.numel() for weight in backbone.unet.parameters()) == 859_520_964
    assert sum(weight.numel() for weight in backbone.text_encoder.parameters()) == 123_060_480
    method = METHODS["custom-diffusion-without-regularization"]
    options = TrainOptions(steps=1, batch=1, recompute=True)
    concept = train(backbone, [make_subject("<bear>", count=1)], [], method, options=options)
    assert all(change.full().any() for change in concept.deltas.values())
    with concept.applied(backbone):
        (drawn,) = sample(backbone, ["photo of a <bear> bear"], seeds=[0], options=SampleOptions(steps=1))
    assert drawn.image.shape == (512, 512, 3)


def test_a_token_with_capitals_is_a_word_of_its_own(tiny: Backbone) -> None:
    with tiny.tokens({"<Rex>": tiny.token_row(20)}):
        assert [positions for _, positions in tiny.words("a <Rex> dog")] == [[1], [2], [3]]


def test_text_that_is_no_utf8_is_named(tiny: Backbone) -> None:
    """Python makes lone surrogates of the bytes of an argument in another encoding."""
    for prompt, negative in (("a d\udcf6g", ""), ("a dog", "\ud83d")):
        with pytest.raises(OptionError, match="has a character that UTF-8 cannot hold. Type it in UTF-8"):
            sample(tiny, [prompt], seeds=[0], options=SampleOptions(steps=3, negative_prompt=negative))
    with pytest.raises(TokenError, match="has a character that UTF-8 cannot hold"):
        tiny.words("d\udcf6g")
    with pytest.raises(TokenError, match="has a character that UTF-8 cannot hold"):
        tiny.check_token("<d\udcf6g>")
