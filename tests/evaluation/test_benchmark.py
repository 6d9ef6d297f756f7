import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moongate import sampling
from moongate.backbone import Backbone, Settings
from moongate.concept import Concept, Dense, SubjectRecord
from moongate.data import square
from moongate.data.pictures import read_picture
from moongate.errors import OptionError, TokenError
from moongate.evaluation import (
    Evaluation,
    EvaluationOptions,
    Network,
    Reference,
    Targets,
    benchmark,
    evaluate,
    metrics,
    read_prompts,
)
from moongate.sampling import SampleOptions

OPTIONS = EvaluationOptions(count=2, sampling=SampleOptions(steps=1, guidance=1), resamples=20)
PROMPTS = ["photo of a {} on the beach", "a red {}"]


def colors(images: Tensor) -> Tensor:
    return images.mean((2, 3))


class Reader:
    """A network whose text tower notes what it was given."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.network = Network(name="colors", image_features=colors, caption_features=self.caption_features)

    def caption_features(self, captions: Sequence[str]) -> Tensor:
        self.read += captions
        return torch.tensor([[len(caption), 1.0, -1.0] for caption in captions])


@pytest.fixture
def concept(tiny: Backbone) -> Concept:
    name, weight = next(iter(tiny.weights("cross-attention-kv").items()))
    return Concept(
        deltas={name: Dense(delta=0.5 * torch.ones_like(weight))},
        tokens={"<bear>": tiny.token_row(20)},
        subjects=(SubjectRecord(category="teddy bear", token="<bear>"),),
        base=tiny.name,
        fingerprint=tiny.fingerprint,
        method="custom-diffusion",
    )


def pictures_in(folder: Path, start: str) -> Tensor:
    """The drawn pictures whose prompts begin so."""
    return torch.stack([square(read_picture(path), 64) for path in folder.rglob(f"{start}*.png")])


def noise(count: int, *, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 255, (count, 64, 64, 3), dtype=np.uint8))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Prompt and seed of each picture that is drawn."""
    found: list[tuple[str, int]] = []
    real: Callable = sampling.sample

    def sample(backbone: Backbone, prompts: Sequence[str], *, seeds: Sequence[int], options: SampleOptions) -> object:
        pictures = real(backbone, prompts, seeds=seeds, options=options)
        found.extend(zip(prompts, seeds, strict=True))
        return pictures

    monkeypatch.setattr(sampling, "sample", sample)
    return found


def test_the_record_holds_every_setting_and_figure(
    tiny: Backbone, concept: Concept, tmp_path: Path, drawn: list[tuple[str, int]]
) -> None:
    reader, targets = Reader(), Targets(pictures=noise(3))
    shown: list[tuple[int, int]] = []
    evaluation = evaluate(
        tiny,
        concept,
        PROMPTS,
        [reader.network],
        folder=tmp_path,
        comparisons=[targets, replace(targets, kind="training")],
        options=replace(OPTIONS, seed=7),
        on_picture=lambda *progress: shown.append(progress),
    )
    record = evaluation.to_json()
    assert json.loads(json.dumps(record)) == record
    said = ["photo of a <bear> teddy bear on the beach", "a red <bear> teddy bear"]
    assert drawn == [(prompt, seed) for prompt in said for seed in (7, 8)]
    assert reader.read == ["photo of a teddy bear on the beach", "a red teddy bear"]
    assert record["prompts"][1] == {"given": "a red {}", "drawn": said[1], "read": "a red teddy bear"}
    assert record["concept"] == {"hash": concept.hash, "method": "custom-diffusion", "subjects": ["<bear> teddy bear"]}
    assert (record["seeds"], record["sampling"]["steps"], record["features"]) == ([7, 8], 1, ["colors"])
    assert [given["kind"] for given in record["targets"]] == ["held out", "training"]
    assert shown == [(1, 4), (2, 4), (3, 4), (4, 4)]
    text, held_out, training = record["measures"]
    assert (text["measure"], held_out["measure"]) == ("text alignment", "image alignment")
    assert (held_out["pictures"], training["pictures"]) == ("held out", "training")
    assert held_out["value"] == training["value"]
    by_prompt = [colors(pictures_in(tmp_path, start)) for start in ("photo-of", "a-red")]
    read = reader.caption_features(["photo of a teddy bear on the beach", "a red teddy bear"])
    own = [
        torch.nn.functional.cosine_similarity(some, words[None]) for some, words in zip(by_prompt, read, strict=True)
    ]
    assert text["by_prompt"] == pytest.approx([float(some.mean()) for some in own], abs=1e-6)
    assert text["value"] == pytest.approx(float(torch.cat(own).mean()), abs=1e-6)
    images = pictures_in(tmp_path, "")
    wanted = torch.stack([square(picture, 64) for picture in targets.pictures])
    pairs = torch.nn.functional.cosine_similarity(colors(images)[:, None], colors(wanted)[None], dim=2)
    assert held_out["value"] == pytest.approx(float(pairs.mean()), abs=1e-6)
    assert held_out["value"] == pytest.approx(sum(held_out["by_prompt"]) / 2)
    assert held_out["low"] <= held_out["value"] <= held_out["high"]


def test_only_missing_pictures_are_drawn_and_other_settings_draw_others(
    tiny: Backbone, concept: Concept, tmp_path: Path, drawn: list[tuple[str, int]]
) -> None:
    def again(given: Concept | None = concept, **changes: object) -> Evaluation:
        drawn.clear()
        prompts = PROMPTS if given else ["a dog"]
        options = replace(OPTIONS, **changes)
        return evaluate(tiny, given, prompts, [Reader().network], folder=tmp_path, options=options)

    first = again()
    assert again() == first
    assert drawn == []
    next(tmp_path.rglob("a-red-*-0001.png")).unlink()
    assert again() == first
    assert drawn == [("a red <bear> teddy bear", 1)]
    again(count=3)
    assert [seed for _, seed in drawn] == [2, 2]
    again(sampling=SampleOptions(steps=2, guidance=1))
    assert len(drawn) == 4
    again(concept.scaled(2))
    assert len(drawn) == 4
    assert again(None).concept is None
    assert drawn == [("a dog", 0), ("a dog", 1)]


def test_real_pictures_give_distances_from_what_their_captions_draw(
    tiny: Backbone, concept: Concept, tmp_path: Path, drawn: list[tuple[str, int]]
) -> None:
    captions = ["a bear", "a bear", "a red bear"]
    reference = Reference(pictures=noise(3), captions=captions)
    options, network = replace(OPTIONS, seed=3), Reader().network
    evaluation = evaluate(tiny, concept, ["a {}"], [network], folder=tmp_path, comparisons=[reference], options=options)
    assert drawn[2:] == [("a bear", 3), ("a bear", 4), ("a red bear", 5)], "alike captions draw different pictures"
    kid, fid = evaluation.measures[1:]
    assert (kid.measure, fid.measure) == ("KID", "FID")
    assert kid.features == fid.features == "colors"
    drawn_colors = colors(torch.cat([pictures_in(tmp_path, start) for start in ("a-bear-????????-", "a-red-bear")]))
    real_colors = colors(torch.stack([square(picture, 64) for picture in reference.pictures]))
    assert kid.value == pytest.approx(metrics.kid(drawn_colors, real_colors), rel=1e-6)
    assert fid.value == pytest.approx(metrics.fid(drawn_colors, real_colors), rel=1e-6)
    assert kid.low is not None
    assert fid.low is None
    assert evaluation.references[0].pictures == 3


def test_one_prompt_gives_values_without_intervals(tiny: Backbone, concept: Concept, tmp_path: Path) -> None:
    alike = Reference(pictures=noise(2), captions=["a bear"] * 2)
    evaluation = evaluate(
        tiny,
        concept,
        PROMPTS[:1],
        [Reader().network],
        folder=tmp_path,
        comparisons=[Targets(pictures=noise(1)), alike],
        options=OPTIONS,
    )
    assert [measure.measure for measure in evaluation.measures] == ["text alignment", "image alignment", "KID", "FID"]
    assert all(measure.low is measure.high is None for measure in evaluation.measures)


def test_textual_inversion_is_called_by_its_token_alone(
    tiny: Backbone, concept: Concept, tmp_path: Path, drawn: list[tuple[str, int]]
) -> None:
    reader = Reader()
    inverted = replace(concept, method="textual-inversion")
    evaluate(tiny, inverted, ["a red {}"], [reader.network], folder=tmp_path, options=replace(OPTIONS, count=1))
    assert drawn == [("a red <bear>", 0)]
    assert reader.read == ["a red teddy bear"]


def test_a_word_of_several_vectors_is_drawn_with_all_of_them(
    tiny: Backbone, concept: Concept, tmp_path: Path, drawn: list[tuple[str, int]]
) -> None:
    reader, (subject,) = Reader(), concept.subjects
    wide = replace(
        concept,
        tokens={**concept.tokens, "<bear-2>": tiny.token_row(30)},
        subjects=(replace(subject, more_tokens=("<bear-2>",)),),
    )
    prompts = ["a <bear> cat", "a red {}"]
    evaluate(tiny, wide, prompts, [reader.network], folder=tmp_path, options=replace(OPTIONS, count=1))
    assert drawn == [("a <bear> <bear-2> cat", 0), ("a red <bear> <bear-2> teddy bear", 0)]
    assert reader.read == ["a teddy bear cat", "a red teddy bear"]


def test_what_cannot_be_measured_is_refused_before_anything_is_drawn(
    tiny: Backbone, concept: Concept, tmp_path: Path, drawn: list[tuple[str, int]]
) -> None:
    def refused(prompts: Sequence[str], *networks: Network, comparisons: Sequence[Targets | Reference] = ()) -> None:
        evaluate(tiny, concept, prompts, networks, folder=tmp_path, comparisons=comparisons, options=OPTIONS)

    reader, blind = Reader().network, Network(name="colors", image_features=colors)
    with pytest.raises(OptionError, match="There is no prompt"):
        refused([], reader)
    with pytest.raises(OptionError, match="is given twice"):
        refused(["a {}", "a {}"], reader)
    with pytest.raises(OptionError, match="Nothing can be measured: colors reads no text"):
        refused(["a {}"], blind)
    with pytest.raises(OptionError, match="Pictures of subject 2 were given, but the concept has 1"):
        refused(["a {}"], reader, comparisons=[Targets(pictures=noise(1), subject=1)])
    with pytest.raises(OptionError, match="Pictures of subject 0 were given"):
        refused(["a {}"], reader, comparisons=[Targets(pictures=noise(1), subject=-1)])
    with pytest.raises(OptionError, match="There are no target pictures"):
        refused(["a {}"], reader, comparisons=[Targets(pictures=[])])
    with pytest.raises(OptionError, match="There is no feature network"):
        refused(["a {}"], comparisons=[Targets(pictures=noise(1))])
    with pytest.raises(OptionError, match="at least two real pictures"):
        refused(["a {}"], reader, comparisons=[Reference(pictures=noise(1), captions=["a bear"])])
    with pytest.raises(OptionError, match="2 real pictures have 1 captions"):
        refused(["a {}"], reader, comparisons=[Reference(pictures=noise(2), captions=["a bear"])])
    with pytest.raises(TokenError, match="unknown token '<cat>'"):
        refused(["a <cat> cat"], reader)
    with pytest.raises(OptionError, match="count is 0"):
        EvaluationOptions(count=0)
    with pytest.raises(OptionError, match="level is 95"):
        EvaluationOptions(level=95)
    assert drawn == []


def test_prompts_and_networks_are_by_default_those_that_suit_the_model(
    tiny: Backbone, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "settings", Settings(prompt_sets=("animal", "pair"), features=("mine",)))
    monkeypatch.setattr(tiny, "cut_off", lambda _: "")  # the tiny text encoder reads 16 tokens
    loaded: list[str] = []
    monkeypatch.setattr(benchmark, "load_network", lambda name, device: loaded.append(name) or Reader().network)
    evaluation = evaluate(tiny, concept, folder=tmp_path, options=replace(OPTIONS, count=1))
    assert [prompt.given for prompt in evaluation.prompts] == read_prompts("animal")
    assert loaded == ["mine"]
