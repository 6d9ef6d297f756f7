from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from moongate.backbone import Backbone
from moongate.data import Subject
from moongate.run_page import DRAWING, Album, Drawn, caption_template, compared, draw, seconds_to_draw
from moongate.run_page.album import Part
from moongate.sampling import sample


def test_each_prompt_is_drawn_with_each_seed_as_sampling_draws_it(tiny: Backbone, tmp_path: Path) -> None:
    album, done = Album(tmp_path), []
    draw(tiny, album, ["a bear", "a dog"], seeds=(3, 5), step=7, part="validation", on_picture=lambda: done.append(1))
    assert len(done) == 4
    drawn = album.drawn("validation")
    assert [(each.place, each.prompt, each.seed, each.step) for each in drawn] == [
        (0, "a bear", 3, 7),
        (0, "a bear", 5, 7),
        (1, "a dog", 3, 7),
        (1, "a dog", 5, 7),
    ]
    (expected,) = sample(tiny, ["a dog"], seeds=[5], options=DRAWING)
    assert np.array_equal(album.image(drawn[-1]), expected.image)


def test_pictures_that_two_threads_add_at_once_are_all_listed(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)

    def add(part: Part) -> None:
        for step in range(20):
            Album(tmp_path).add(Drawn(part=part, step=step, prompt="a bear", seed=0), image)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(add, ("validation", "comparison")))
    assert len(Album(tmp_path).drawn()) == 40


def test_captions_that_begin_alike_give_the_words_of_the_prompts(make_subject: Callable[..., Subject]) -> None:
    captions = ("drawing of a <bear> bear in snow", "drawing of a <bear> bear at night", "drawing of a <bear> bear")
    subject = replace(make_subject(), captions=captions)
    assert caption_template([subject]) == "drawing of a {}"
    other = make_subject("<owl>", category="owl")
    drawn = replace(other, captions=("drawing of a <owl> owl",) * 3)
    assert caption_template([subject, drawn]) == "drawing of a {}"
    assert caption_template([subject, replace(other, captions=("photo of a <owl> owl",) * 3)]) is None
    assert caption_template([replace(subject, captions=("a <bear> bear", *captions[1:]))]) is None
    assert caption_template([replace(subject, captions=("the <bear>", *captions[1:]))]) is None


def test_prompts_that_the_model_would_cut_are_left_out(tiny: Backbone) -> None:
    pairs = compared(tiny, "photo of a bear", "photo of a red red red bear")
    assert "photo of a bear on the beach" in [pair.base for pair in pairs]
    assert all(not tiny.cut_off(pair.concept) for pair in pairs)
    assert compared(tiny, "photo of a bear", "red " * 14 + "bear") == []


def test_the_time_to_draw_follows_from_the_speed_of_training(tiny: Backbone) -> None:
    """20 steps with guidance evaluate the denoiser 40 times; a trained picture costs about three."""
    assert seconds_to_draw(30, tiny, pictures_per_second=8) == 30 * 40 / (3 * 8)
