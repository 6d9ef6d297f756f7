import numpy as np
import pytest

from recipe.corpus.places import PANORAMAS_OF, PLACES, PLAIN_COLORS, PROCEDURAL, STAGES, draw_place


@pytest.fixture(scope="module")
def panoramas() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    names = {name for choices in PANORAMAS_OF.values() for name in choices}
    return {name: rng.random((32, 64, 3), dtype=np.float32) for name in sorted(names)}


@pytest.mark.parametrize("phrase", PLACES)
def test_a_place_is_one_of_eight_stages(phrase: str, panoramas: dict[str, np.ndarray]) -> None:
    stages = {draw_stage(phrase, seed, panoramas) for seed in range(80)}
    assert STAGES / 2 < len(stages) <= STAGES


@pytest.mark.parametrize("phrase", PLACES)
def test_a_stage_is_mirrored_and_changed_in_brightness(phrase: str, panoramas: dict[str, np.ndarray]) -> None:
    pictures = [draw_place(phrase, 16, np.random.default_rng(seed), panoramas) for seed in range(80)]
    for picture in pictures:
        assert picture.dtype == np.float32
        assert picture.shape == (16, 16, 3)
        assert picture.min() >= 0
        assert picture.max() <= 1
    assert len({picture.tobytes() for picture in pictures}) > 2 * STAGES


def draw_stage(phrase: str, seed: int, panoramas: dict[str, np.ndarray]) -> bytes:
    """The place with neither brightness nor mirroring, which are the last two numbers that the generator gives."""

    class Still(np.random.Generator):
        def uniform(self, *bounds: float) -> float:
            return 1.0

        def random(self) -> float:
            return 1.0

    return draw_place(phrase, 16, Still(np.random.PCG64(seed)), panoramas).tobytes()


def test_panoramas_are_soft(panoramas: dict[str, np.ndarray]) -> None:
    """Depth of field: neighboring pixels of a view into white noise differ little."""
    picture = draw_place("in a forest", 128, np.random.default_rng(0), panoramas)
    assert np.abs(np.diff(picture, axis=1)).max() < 0.1


@pytest.mark.parametrize("color", PLAIN_COLORS)
def test_a_plain_background_has_the_color_that_the_caption_names(color: str) -> None:
    picture = draw_place(f"on a {color} background", 16, np.random.default_rng(1), {})
    distances = {name: np.abs(picture[0].mean(0) - values).sum() for name, values in PLAIN_COLORS.items()}
    assert min(distances, key=distances.__getitem__) == color


def test_every_place_is_procedural_or_a_panorama() -> None:
    assert set(PLACES) == {*PROCEDURAL, *PANORAMAS_OF}
