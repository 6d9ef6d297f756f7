import dataclasses
import re
from pathlib import Path

import numpy as np
import torch

from making import make_concept
from moongate.backbone import Backbone
from moongate.evaluation import (
    EvaluationOptions,
    Network,
    Targets,
    base_alone,
    evaluate,
    kept_pictures,
    write_page,
)
from moongate.sampling import SampleOptions

OPTIONS = EvaluationOptions(count=2, sampling=SampleOptions(steps=1, guidance=1), resamples=20)
PROMPTS = ["photo of a {} on the beach", "a red {}"]
NETWORK = Network(
    name="colors",
    image_features=lambda images: images.mean((2, 3)),
    caption_features=lambda captions: torch.tensor([[len(caption), 1.0, -1.0] for caption in captions]),
)


def test_the_page_shows_pictures_photos_and_the_values_of_the_base(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny)
    photos = list(np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8))
    compared = [Targets(pictures=photos, kind="training"), Targets(pictures=photos[:2], kind="held out")]
    folder = tmp_path / "pictures"
    taught = evaluate(tiny, concept, PROMPTS, [NETWORK], folder=folder, comparisons=compared, options=OPTIONS)
    plain = base_alone(concept)
    base = evaluate(tiny, plain, PROMPTS, [NETWORK], folder=folder, comparisons=compared, options=OPTIONS)
    files = sorted(folder.rglob("*.png"))
    drawn = kept_pictures(tiny, concept, [prompt.drawn for prompt in taught.prompts], taught, folder)
    base_drawn = kept_pictures(tiny, plain, [prompt.drawn for prompt in base.prompts], base, folder)
    assert sorted(folder.rglob("*.png")) == files
    page = write_page(
        taught, tmp_path, drawn=drawn, base=base, base_drawn=base_drawn, photos={"<bear> bear": photos}
    ).read_text()
    assert page.count("<img") == 3 + 2 * len(PROMPTS) * 2
    for kind in ("training", "held out"):
        words = f"image alignment with {kind} photos of &lt;bear&gt; bear"
        labels = re.findall(r">([^<>]*)<", page)
        shown = [label for label in labels if words in label]
        assert len(shown) == len(PROMPTS), "each prompt says with which photos its pictures were compared"
    assert [prompt.drawn for prompt in base.prompts] == ["photo of a bear on the beach", "a red bear"]
    for measure, other in zip(taught.measures, base.measures, strict=True):
        row = next(row for row in re.findall(r"<tr>(.*?)</tr>", page) if f">{measure.value:.4f}<" in row)
        assert f"<td>{other.value:.4f}</td>" in row
        assert (f'class="good">{measure.value:.4f}' in row) == (measure.value >= other.value)


def test_without_a_base_the_page_has_the_values_alone(tiny: Backbone, tmp_path: Path) -> None:
    concept = make_concept(tiny)
    taught = evaluate(tiny, concept, PROMPTS[:1], [NETWORK], folder=tmp_path, options=OPTIONS)
    drawn = kept_pictures(tiny, concept, [taught.prompts[0].drawn], taught, tmp_path)
    page = write_page(taught, tmp_path, drawn=drawn).read_text()
    assert "the base alone" not in page
    assert f"<td>{taught.measures[0].value:.4f}</td>" in page


def test_the_values_of_several_networks_for_a_prompt_share_one_name(tiny: Backbone, tmp_path: Path) -> None:
    networks = [NETWORK, dataclasses.replace(NETWORK, name="more colors")]
    options = dataclasses.replace(OPTIONS, count=1)
    taught = evaluate(tiny, make_concept(tiny), PROMPTS[:1], networks, folder=tmp_path, options=options)
    drawn = kept_pictures(tiny, make_concept(tiny), [taught.prompts[0].drawn], taught, tmp_path)
    page = write_page(taught, tmp_path, drawn=drawn).read_text()
    first, second = (measure.by_prompt[0] for measure in taught.measures if measure.by_prompt)
    assert f">text alignment {first:.3f} (colors), {second:.3f} (more colors)<" in page
    assert "1 prompt with one picture each" in page
