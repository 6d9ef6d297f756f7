from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from moongate.backbone import Backbone
from moongate.errors import BackboneError, OptionError, TokenError


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


def test_text_features_equal_those_of_plain_diffusers(tiny: Backbone, tiny_folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    expected, _ = pipeline.encode_prompt("photo of a dog", "cpu", 1, False)
    assert torch.equal(tiny.encode_text(["photo of a dog"]).features, expected)


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


def test_gradients_reach_the_row_and_nothing_else(tiny: Backbone) -> None:
    row = tiny.token_row(20).requires_grad_(True)
    with tiny.tokens({"<bear>": row}):
        tiny.encode_text(["photo of a <bear> bear"]).features.square().sum().backward()
    assert row.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in tiny.text_encoder.parameters())


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("bear", "'bear' is already a word of the tokenizer.*Use a new one such as '<bear1>'"),
        ("<|endoftext|>", "already a word"),
        ("", "white space or nothing"),
        ("<my bear>", "white space"),
        ("xyz", "not written in angle brackets.*'<xyz>'"),
    ],
)
def test_a_token_that_is_no_new_word_is_refused(tiny: Backbone, token: str, message: str) -> None:
    with pytest.raises(TokenError, match=message), tiny.tokens({token: tiny.token_row(20)}):
        pass


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
    with pytest.raises(BackboneError, match="cannot be loaded.*Give 'pocket', a folder"):
        Backbone.load(tmp_path / "nowhere", device="cpu")
