"""The subjects, pairs and methods of the study fit one another, and a concept is trained once."""

import dataclasses
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from experiments import fig8_alignment, fig9_styles, fig11_failures
from experiments.scores import MERGES, Several, Single, prompts_for
from experiments.study import (
    EXAMPLES,
    MORE_PAIRS,
    PAIRS,
    QUADRUPLES,
    RECOGNIZED,
    SOME,
    TRIPLES,
    Size,
    Study,
    for_pocket,
    steps_for,
)
from experiments.styles import STYLES, style_pictures, style_subject
from moongate import METHODS, Backbone, pocket
from moongate.backbone import SETTINGS_FILE, Settings
from moongate.data.pictures import read_picture
from moongate.demo.recognizer import Recognizer
from moongate.errors import OptionError
from moongate.merging import MergeOptions

TOGETHER = (*PAIRS, *MORE_PAIRS, *TRIPLES, *QUADRUPLES)


def test_what_is_measured_exists_and_is_of_one_category_each() -> None:
    assert set(EXAMPLES) <= set(pocket.examples())
    categories = [pocket.example(example).category for example in EXAMPLES]
    assert len(set(categories)) == len(categories)
    assert set(SOME) >= set(RECOGNIZED) >= set(chain(*TOGETHER))
    for record in fig8_alignment.records():
        assert (record.method if isinstance(record, Single) else "custom-diffusion") in METHODS


def test_the_decay_of_neutral_captions_is_for_keys_and_values_alone(tmp_path: Path) -> None:
    study = Study(folder=tmp_path)
    own = study.backbone.settings.neutral_decay
    assert own > 0
    strengths = {"custom-diffusion": own, "custom-diffusion-without-neutral-decay": 0.0, "fine-tune-all": 0.0}
    assert {name: study._neutral_decay(name) for name in strengths} == strengths
    assert for_pocket("custom-diffusion-without-neutral-decay") == for_pocket("custom-diffusion")


def test_no_pair_is_there_twice_or_holds_categories_that_are_alike() -> None:
    pairs = [{pocket.example(example).category for example in pair} for pair in (*PAIRS, *MORE_PAIRS)]
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert {"chair", "sofa"} not in pairs
    assert {"plant", "flower"} not in pairs


def test_the_recognizer_tells_the_members_of_pairs_on_most_real_pictures() -> None:
    recognizer = Recognizer.load()
    for example in RECOGNIZED:
        source = pocket.example(example)
        pictures = np.stack([read_picture(path) for path in sorted(source.evaluation.glob("*.webp"))])
        assert recognizer.sees(pictures, [source.category]).double().mean() > 0.5, example


def test_subjects_that_are_merged_start_from_different_rare_tokens(tmp_path: Path) -> None:
    study = Study(folder=tmp_path)
    merged = (*TOGETHER, *fig11_failures.PAIRS, *zip(STYLES, fig9_styles.SUBJECTS, strict=True))
    for examples in merged:
        tokens = [study._rare_token(example) for example in examples]
        assert len(set(tokens)) == len(tokens), examples


def test_pictures_of_a_style_are_captioned_and_those_held_out_are_others() -> None:
    for style in STYLES:
        subject, found = style_subject(style), style_pictures(style)
        assert all(caption.startswith(f"<{style}> drawing of a") for caption in subject.captions)
        trained = {picture.tobytes() for picture in found.training}
        assert not trained & {picture.tobytes() for picture in found.held_out}
        assert len(np.unique(np.concatenate(found.training).reshape(-1, 3), axis=0)) <= 5  # flat colors
        assert found.training[0].shape == (128, 128, 3)


@pytest.mark.parametrize("name", METHODS)
def test_methods_on_pocket_take_fewer_steps_and_never_go_further(name: str) -> None:
    scaled, paper = for_pocket(name), METHODS[name]
    assert scaled.steps_per_subject <= paper.steps_per_subject // 2
    further = scaled.steps_per_subject * scaled.lr_per_picture / (paper.steps_per_subject * paper.lr_per_picture)
    assert further <= 1 + 1e-9
    assert for_pocket(f"{name}-in-full") == dataclasses.replace(paper, augments=False)
    assert not scaled.augments
    assert for_pocket(f"{name}-with-augmentation").augments == paper.augments


def test_subjects_that_are_taught_together_take_as_many_steps_for_each_as_pocket_says() -> None:
    settings = Settings.read(pocket.weights_folder() / SETTINGS_FILE)
    assert settings.joint_steps_scale
    for name in ("custom-diffusion", "dreambooth"):
        alone, two, three = (steps_for(for_pocket(name), subjects) for subjects in (1, 2, 3))
        assert alone == for_pocket(name).steps_per_subject
        assert two / (2 * alone) == pytest.approx(settings.joint_steps_scale / settings.steps_scale)
        assert three / two == pytest.approx(3 / 2, abs=0.01)


def test_the_pictures_of_kid_are_not_those_of_training(tmp_path: Path) -> None:
    study = Study(folder=tmp_path)
    for example in ("teapot", "drawn-owl", "bulldog"):  # the pool has fewest of the first two
        pool = study.pool(pocket.example(example).category)
        trained = {picture.tobytes() for picture in pool.regularization.pictures}
        assert not trained & {picture.tobytes() for picture in pool.reference.pictures}
        assert len(pool.reference.pictures) == Size().references


def test_a_size_that_nothing_can_be_measured_with_is_refused() -> None:
    with pytest.raises(OptionError, match=r"size.pair_count is 0; it must be at least 1"):
        Size(pair_count=0)
    with pytest.raises(OptionError, match=r"must be at least 2, as KID and FID need"):
        Size(references=1)


def test_a_concept_is_trained_once(tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(folder=tmp_path)
    monkeypatch.setattr(study, "backbone", tiny, raising=False)
    first = study.single("jar", "textual-inversion", 0, steps=1)
    monkeypatch.setattr("experiments.study.train", lambda *_, **__: pytest.fail("trained again"))
    assert study.single("jar", "textual-inversion", 0, steps=1).hash == first.hash


def test_prompts_for_several_name_every_subject_once_and_most_nothing_else() -> None:
    for number in (2, 3, 4):
        prompts = prompts_for(number)
        assert len(prompts) == 12
        for prompt in prompts:
            assert [prompt.count(f"{{{place}}}") for place in range(5)] == [1] * number + [0] * (5 - number)
        alone = prompts_for(number, others=False)
        assert len(alone) == 9
        assert not [prompt for prompt in alone if "tree" in prompt or "cup" in prompt]
    assert prompts_for(3)[0] == "photo of a {0} and a {1} and a {2} on the beach"


def test_each_way_to_merge_has_a_key_of_its_own_and_the_usual_one_is_that_of_the_tables() -> None:
    records = [Several(PAIRS[0], "merge", 0, merging) for merging in MERGES]
    assert len({record.key for record in records}) == len(records)
    (usual,) = [record for record in records if record == Several(PAIRS[0], "merge")]
    assert MERGES[usual.merging] == MergeOptions()
    assert len(set(MERGES.values())) == len(MERGES)
