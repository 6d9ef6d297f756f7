import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UNet2DConditionModel,
)
from PIL import Image

from conftest import make_tiny_model
from making import invented
from moongate import sampling
from moongate.backbone import Backbone
from moongate.backbone.settings import Settings
from moongate.errors import MoongateWarning, OptionError, TokenError
from moongate.limits import MAX_DRAWN_PX
from moongate.sampling import (
    SCHEDULERS,
    SETTINGS_FILE,
    SampleOptions,
    denoised,
    draw_missing,
    make_scheduler,
    sample,
)

QUICK = SampleOptions(steps=3)


def drawn(tiny: Backbone, prompts: list[str], seeds: list[int], options: SampleOptions = QUICK) -> list[np.ndarray]:
    return [item.image for item in sample(tiny, prompts, seeds=seeds, options=options)]


def test_pictures_are_uint8_of_the_models_size_and_carry_prompt_and_seed(tiny: Backbone) -> None:
    items = list(sample(tiny, ["a dog", "a cat"], seeds=[3, 4], options=QUICK))
    assert [(item.prompt, item.seed) for item in items] == [("a dog", 3), ("a cat", 4)]
    assert all(item.image.shape == (64, 64, 3) and item.image.dtype == np.uint8 for item in items)


def test_a_picture_depends_on_its_own_seed_and_prompt_alone(tiny: Backbone) -> None:
    together = drawn(tiny, ["a dog", "a cat", "a dog"], [1, 2, 3])
    assert np.array_equal(together[1], drawn(tiny, ["a dog", "a cat", "a dog"], [1, 2, 3])[1])
    alone = drawn(tiny, ["a cat"], [2])[0]
    assert np.abs(together[1].astype(int) - alone).max() <= 1  # batched arithmetic may round differently
    assert not np.array_equal(together[0], together[2])


@pytest.mark.parametrize("scheduler", [*SCHEDULERS, "PNDMScheduler"])
def test_no_scheduler_clips_latents_whatever_the_models_own_leaves_open(each: Backbone, scheduler: str) -> None:
    """Latents reach beyond -1..1; DDPM and DDIM clip them unless the configuration forbids it, as for pixels."""
    assert not make_scheduler(each, scheduler).config.get("clip_sample")
    assert not each.schedule.config.clip_sample


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler])
def test_a_clean_latent_beyond_one_is_reached_by_the_papers_sampler(
    kind: type[SchedulerMixin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=0, family="sdxl")
    kind(beta_schedule="scaled_linear", prediction_type="sample").save_pretrained(folder / "scheduler")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    config.pop("clip_sample", None)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind.__name__]}))
    backbone = Backbone.load(folder, device="cpu")
    monkeypatch.setattr(backbone, "predict", lambda noisy, *_, **__: torch.full_like(noisy, 3.0))
    latents = denoised(backbone, ["a dog"], [0], SampleOptions(steps=2, guidance=1.0))
    assert latents.mean() == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("negative", ["", "a chair"])
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "euler", "PNDMScheduler"])
def test_pictures_equal_those_of_plain_diffusers(
    each: Backbone, family_folder: Path, scheduler: str, negative: str
) -> None:
    """The pipeline of each family, from the same noise, with and without a negative prompt, and not square."""
    pipeline = DiffusionPipeline.from_pretrained(family_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler(each, scheduler)
    prompts, seeds = ["a dog", "a red cat"], [3, 4]
    expected = pipeline(
        prompts,
        negative_prompt=[negative] * 2 if negative else None,
        num_inference_steps=4,
        guidance_scale=6.0,
        width=96,
        height=64,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    size = {"width_px": 96, "height_px": 64}
    options = SampleOptions(steps=4, scheduler=scheduler, negative_prompt=negative, **size)
    assert np.abs(drawn(each, prompts, seeds, options) - expected * 255).max() < 0.51  # half of it is rounding


def test_guidance_of_one_is_the_conditional_prediction(tiny: Backbone) -> None:
    """Guidance g gives u + g (c - u); at 1 the unconditional branch drops out, whatever the negative prompt."""
    one = SampleOptions(steps=3, guidance=1.0, scheduler="ddim")
    negative = SampleOptions(steps=3, guidance=1.0, scheduler="ddim", negative_prompt="a chair")
    with pytest.warns(MoongateWarning, match="'a chair' has no effect without guidance: guidance is 1.0"):
        assert np.array_equal(drawn(tiny, ["a dog"], [0], one)[0], drawn(tiny, ["a dog"], [0], negative)[0])
    same = SampleOptions(steps=3, guidance=6.0, scheduler="ddim", negative_prompt="a dog")
    difference = drawn(tiny, ["a dog"], [0], one)[0].astype(int) - drawn(tiny, ["a dog"], [0], same)[0]
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_guidance_of_at_most_one_draws_what_diffusers_draws(
    each: Backbone, family_folder: Path, guidance: float
) -> None:
    pipeline = DiffusionPipeline.from_pretrained(family_folder)
    expected = piped(pipeline, each, "ddim", guidance)
    options = SampleOptions(steps=4, scheduler="ddim", guidance=guidance)
    assert np.abs(drawn(each, PROMPTS, SEEDS, options) - expected).max() < 0.51
    conditional = drawn(each, PROMPTS, SEEDS, replace(options, guidance=1.0))
    assert np.array_equal(drawn(each, PROMPTS, SEEDS, options), conditional)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.5])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_latent_consistency_model_draws_what_diffusers_draws(tmp_path: Path, family: str, guidance: float) -> None:
    """Its denoiser takes the scale of guidance as an input (`time_cond_proj_dim`), and predicts once a step."""
    pipeline = DiffusionPipeline.from_pretrained(make_tiny_model(tmp_path / "plain", seed=0, family=family))
    torch.manual_seed(1)
    denoiser = UNet2DConditionModel.from_config({**pipeline.unet.config, "time_cond_proj_dim": 9})
    denoiser.load_state_dict({**denoiser.state_dict(), **pipeline.unet.state_dict()})
    with torch.no_grad():
        denoiser.time_embedding.cond_proj.weight.mul_(20)  # so that pictures depend on it
    pipeline.unet = denoiser.eval()
    pipeline.save_pretrained(tmp_path / "lcm")
    model = Backbone.load(tmp_path / "lcm", device="cpu")
    expected = piped(DiffusionPipeline.from_pretrained(tmp_path / "lcm"), model, "LCMScheduler", guidance)
    options = SampleOptions(steps=4, scheduler="LCMScheduler", guidance=guidance)
    images = drawn(model, PROMPTS, SEEDS, options)
    assert np.abs(images - expected).max() < 0.51
    assert not np.array_equal(images, drawn(model, PROMPTS, SEEDS, replace(options, guidance=guidance + 1)))
    with pytest.warns(MoongateWarning, match="takes the scale of guidance as an input"):
        drawn(model, PROMPTS, SEEDS, replace(options, guidance=8.0, negative_prompt="a chair"))


PROMPTS, SEEDS = ["a dog", "a red cat"], [3, 4]


def piped(pipeline: DiffusionPipeline, backbone: Backbone, scheduler: str, guidance: float) -> np.ndarray:
    """Return what a pipeline of diffusers draws in four steps, in 0..255."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler(backbone, scheduler)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    how = {"num_inference_steps": 4, "guidance_scale": guidance, "generator": generators, "output_type": "np"}
    return pipeline(PROMPTS, width=64, height=64, **how).images * 255


def test_ddim_of_one_step_equals_the_formula(tiny: Backbone) -> None:
    """x0 = sqrt(a) x - sqrt(1 - a) v, decoded."""
    options = SampleOptions(steps=1, guidance=1.0, scheduler="ddim")
    picture = drawn(tiny, ["a dog"], [7], options)[0]
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(7))[None]
    last = 1  # one step of leading spacing with offset 1
    with torch.no_grad():
        velocity = tiny.predict(noise, torch.tensor([last]), tiny.encode_text(["a dog"]))
        alpha = tiny.schedule.alphas_cumprod[last]
        clean = alpha.sqrt() * noise - (1 - alpha).sqrt() * velocity
        alpha_end = tiny.schedule.alphas_cumprod[0]
        residual = alpha.sqrt() * velocity + (1 - alpha).sqrt() * noise
        latents = alpha_end.sqrt() * clean + (1 - alpha_end).sqrt() * residual
        expected = {
            float(scale): ((tiny.decode_latents(x)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            for scale, x in ((0, clean), (1, latents))
        }
    assert min(np.abs(picture.astype(int) - value).max() for value in expected.values()) <= 1


@pytest.mark.parametrize("name", [*SCHEDULERS, "HeunDiscreteScheduler"])
def test_every_named_scheduler_draws(tiny: Backbone, name: str) -> None:
    assert drawn(tiny, ["a dog"], [0], SampleOptions(steps=2, scheduler=name))[0].std() > 0


def test_other_sizes_are_drawn_and_odd_ones_refused(tiny: Backbone) -> None:
    wide = drawn(tiny, ["a dog"], [0], SampleOptions(steps=1, width_px=96, height_px=64))[0]
    assert wide.shape == (64, 96, 3)
    with pytest.raises(OptionError, match="side of 65 px is not a positive multiple of 8 px. Give 64."):
        sample(tiny, ["a dog"], seeds=[0], options=SampleOptions(width_px=65))


def test_a_picture_far_from_the_models_size_is_refused(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_ENLARGEMENT", 4)
    assert drawn(tiny, ["a dog"], [0], SampleOptions(steps=1, width_px=16, height_px=16))[0].shape == (16, 16, 3)
    with pytest.raises(OptionError, match="A side of 8 px is less than 1/4 of that of the model's pictures, 64 px"):
        sample(tiny, ["a dog"], seeds=[0], options=SampleOptions(height_px=8))
    sample(tiny, ["a dog"], seeds=[0], options=SampleOptions(height_px=4 * 64))
    with pytest.raises(OptionError, match="A side of 264 px is more than 4 times that of the model's pictures, 64 px"):
        sample(tiny, ["a dog"], seeds=[0], options=SampleOptions(height_px=4 * 64 + 8))


def test_an_unknown_token_is_refused_with_the_known_ones(tiny: Backbone) -> None:
    with pytest.raises(TokenError, match="unknown token '<cat>'. Known tokens: none; give --concept"):
        sample(tiny, ["photo of a <cat> cat"], seeds=[0])
    with tiny.tokens({"<bear>": tiny.token_row(20)}), pytest.raises(TokenError, match="Known tokens: <bear>"):
        sample(tiny, ["photo of a <bear> bear on the <cat>'s chair"], seeds=[0])


@pytest.mark.parametrize(
    ("prompt", "end"),
    [
        ("red " * 13 + "extraordinarily blue", "extraordinarily blue"),
        ("\u732b" * 40, None),
    ],
)
def test_the_end_that_is_not_read_begins_with_a_whole_word(prompt: str, end: str | None, tiny: Backbone) -> None:
    lost = tiny.cut_off(prompt)
    assert lost == end if end else 0 < len(lost) < len(prompt), "of a single word a part is read"


def test_a_long_prompt_is_shortened_in_messages(tiny: Backbone) -> None:
    with pytest.warns(MoongateWarning, match=r"no effect: 'red .* \.\.\.'") as caught:
        drawn(tiny, ["red " * 2000], [0], SampleOptions(steps=1))
    assert len(str(caught[0].message)) < 350


def test_an_unknown_token_in_the_negative_prompt_is_refused(tiny: Backbone) -> None:
    for guidance in (6.0, 1.0):
        options = SampleOptions(steps=1, guidance=guidance, negative_prompt="<easynegative>, small")
        with pytest.raises(TokenError, match="The negative prompt '<easynegative>, small' uses the unknown token"):
            sample(tiny, ["a dog"], seeds=[0], options=options)


def test_a_prompt_that_is_cut_is_said_with_its_end_and_refused_where_that_has_a_token(tiny: Backbone) -> None:
    """The tiny text encoder reads 16 tokens, of which two are the start and the end."""
    fitting = " ".join(["red"] * 14)
    drawn(tiny, [fitting], [0], SampleOptions(steps=1))
    with pytest.warns(MoongateWarning, match=r"prompt 'red .* This end has no effect: 'cat on the Beach'") as caught:
        drawn(tiny, [f"{fitting} cat on the Beach"] * 2, [0, 1], SampleOptions(steps=1))
    assert len(caught) == 1
    with pytest.warns(MoongateWarning, match="negative prompt .* no effect: 'chair'"):
        drawn(tiny, ["a dog"], [0], SampleOptions(steps=1, negative_prompt=f"{fitting} chair"))
    with tiny.tokens({"<bear>": tiny.token_row(20)}):
        drawn(tiny, [f"{fitting[4:]} <bear>"], [0], SampleOptions(steps=1))
        with pytest.raises(TokenError, match="its end '<bear> on the beach' with the token '<bear>' would be cut off"):
            sample(tiny, [f"{fitting} <bear> on the beach"], seeds=[0])
        with pytest.raises(TokenError, match="its end '<Bear>' with the token '<bear>' would be cut off"):
            sample(tiny, [f"{fitting} <Bear>"], seeds=[0])
        with pytest.raises(TokenError, match="The negative prompt .* with the token '<bear>'"):
            sample(tiny, ["a dog"], seeds=[0], options=SampleOptions(negative_prompt=f"{fitting} <bear>"))
        with pytest.warns(MoongateWarning, match="no effect: '<bear>'"):
            drawn(tiny, [f"<bear> {fitting[4:]} <bear>"], [0], SampleOptions(steps=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001; models have 1000 noise levels"),
        ({"height_px": MAX_DRAWN_PX + 8}, f"side of {MAX_DRAWN_PX + 8} px cannot be drawn"),
        ({"batch": 0}, "batch is 0"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"guidance": 101.0}, "guidance is 101.0"),
        ({"guidance": float("nan")}, "guidance is nan"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SampleOptions(**options)


def test_an_unknown_scheduler_is_refused(tiny: Backbone) -> None:
    with pytest.raises(OptionError, match="Unknown scheduler 'fast'. Known: ddpm"):
        sample(tiny, ["a dog"], seeds=[0], options=SampleOptions(scheduler="fast"))
    with pytest.raises(OptionError, match="Unknown scheduler 'UNet2DModel'"):
        sample(tiny, ["a dog"], seeds=[0], options=SampleOptions(scheduler="UNet2DModel"))
    with pytest.raises(OptionError, match="'DDIMInverseScheduler' is made for another kind of model"):
        sample(tiny, ["a dog"], seeds=[0], options=SampleOptions(scheduler="DDIMInverseScheduler"))


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [("ddpm", 1000), ("ddim", 1000), ("dpm++", 1000), ("dpm++", 999), ("LCMScheduler", 51), ("PNDMScheduler", 1)],
)
def test_a_number_of_steps_that_a_scheduler_cannot_take_is_refused(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch, scheduler: str, steps: int
) -> None:
    if scheduler != "PNDMScheduler":
        config = {**tiny.scheduler_config, "steps_offset": 1}  # as that of Stable Diffusion
        monkeypatch.setattr(tiny, "scheduler_config", config)
    options = SampleOptions(scheduler=scheduler, steps=steps)
    with pytest.raises(OptionError, match=f"scheduler '{re.escape(scheduler)}' cannot take {steps} steps"):
        sample(tiny, ["a dog"], seeds=[0], options=options)


def test_only_missing_pictures_are_drawn(tiny: Backbone, tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []

    def draw(prompts: list[str], seeds: list[int]) -> list[Path]:
        counts.clear()
        return draw_missing(
            tiny, prompts, seeds=seeds, folder=tmp_path, options=QUICK, on_picture=lambda *c: counts.append(c)
        )

    first = draw(["a dog", "a cat", "a dog"], [0, 0, 0])
    assert first[0] == first[2]
    assert counts == [(1, 2), (2, 2)]
    expected = drawn(tiny, ["a dog", "a cat"], [0, 0])
    assert np.array_equal([np.array(Image.open(path)) for path in first[:2]], expected)
    first[1].unlink()
    again = draw(["a cat", "a dog", "a dog"], [0, 0, 12])
    assert again[:2] == first[1::-1]
    assert counts == [(2, 3), (3, 3)]
    assert draw(["a cat"], [0]) == again[:1]
    assert counts == []


def test_pictures_of_other_settings_lie_in_another_folder_that_says_which(tiny: Backbone, tmp_path: Path) -> None:
    concept = invented(tiny, ("<one>", "bear"))
    with pytest.raises(TokenError, match="unknown token '<one>'"):
        draw_missing(tiny, ["a <one> bear"], seeds=[0], folder=tmp_path)
    (base,) = draw_missing(tiny, ["a bear"], seeds=[0], folder=tmp_path, options=QUICK)
    (taught,) = draw_missing(tiny, ["a <one> bear"], seeds=[0], folder=tmp_path, options=QUICK, concept=concept)
    (longer,) = draw_missing(tiny, ["a bear"], seeds=[0], folder=tmp_path, options=replace(QUICK, steps=4))
    (batched,) = draw_missing(tiny, ["a bear"], seeds=[0], folder=tmp_path, options=replace(QUICK, batch=1))
    assert batched == base
    assert len({path.parent for path in (base, taught, longer)}) == 3
    settings = json.loads((taught.parent / SETTINGS_FILE).read_text())
    assert settings["concept"] == concept.hash
    assert settings["base"] == tiny.name
    assert settings["sampling"]["steps"] == 3
    with concept.applied(tiny):
        assert np.array_equal(np.array(Image.open(taught)), drawn(tiny, ["a <one> bear"], [0])[0])


def test_pictures_of_another_base_or_precision_lie_in_another_folder(
    tiny: Backbone, tiny_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    half = Backbone.load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    found = [
        draw_missing(backbone, ["a bear"], seeds=[0], folder=tmp_path, options=replace(QUICK, steps=1))[0].parent
        for backbone in (tiny, half, Backbone.load(other_folder, device="cpu"))
    ]
    assert len(set(found)) == 3


def test_prompts_that_differ_by_signs_alone_have_files_of_their_own(tiny: Backbone, tmp_path: Path) -> None:
    paths = draw_missing(tiny, ["a dog", "a dog!", "dog " * 12], seeds=[0, 0, 0], folder=tmp_path, options=QUICK)
    assert len(set(paths)) == 3
    assert all(len(path.name) < 150 for path in paths)
    with pytest.raises(OptionError, match="2 prompts and 1 seeds were given"):
        draw_missing(tiny, ["a dog", "a cat"], seeds=[0], folder=tmp_path)


def test_guidance_is_the_models_own_or_the_papers_unless_it_is_given(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_guidance(guidance: float | None) -> np.ndarray:
        return drawn(tiny, ["a dog"], [1], SampleOptions(steps=2, guidance=guidance))[0]

    assert np.array_equal(with_guidance(None), with_guidance(6.0))
    monkeypatch.setattr(tiny, "settings", Settings(guidance=2.5))
    assert np.array_equal(with_guidance(None), with_guidance(2.5))
    assert not np.array_equal(with_guidance(None), with_guidance(6.0))
