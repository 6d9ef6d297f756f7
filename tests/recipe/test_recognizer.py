from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moongate.demo.recognizer import Recognizer
from moongate.errors import CorpusError, OptionError
from recipe import recognizer as module
from recipe.corpus import Corpus
from recipe.recognizer import (
    CLASSES,
    Content,
    RecognizerOptions,
    held_out_without_size,
    main,
    shares_recognized,
    train_recognizer,
)


def scores_of(content: Content) -> Tensor:
    """Return the scores that a perfect recognizer gives."""
    parts = [torch.zeros(count) for count in CLASSES.counts]
    for part, indices in zip(parts, content.indices(CLASSES), strict=True):
        part[list(indices)] = 1
    return torch.cat(parts)


def test_captions_follow_the_grammar_of_the_corpus() -> None:
    two = Content(categories=("elephant", "chair"), place="in a garden", style="photo")
    assert two.caption == "photo of an elephant and a chair in a garden"
    one = Content(categories=("sunglasses",), place="on an orange background", style="drawing")
    assert one.caption == "drawing of sunglasses on an orange background"


def test_shares_are_split_by_the_number_of_objects() -> None:
    contents = [
        Content(categories=("cat",), place="at night", style="photo"),
        Content(categories=("dog",), place="at night", style="photo"),
        Content(categories=("cat", "dog"), place="in a room", style="drawing"),
        Content(categories=("cat", "chair"), place="in a room", style="pixel art"),
    ]
    # A perfect recognizer, with three mistakes.
    scores = torch.stack([scores_of(content) for content in contents])
    scores[1] = scores_of(Content(categories=("cat",), place="at night", style="photo"))
    scores[3] = scores_of(Content(categories=("cat", "chair"), place="at night", style="photo"))
    assert shares_recognized(scores, contents, CLASSES) == {
        "single_object_recognized": 0.5,
        "both_objects_recognized": 1.0,
        "place_recognized": 0.75,
        "style_recognized": 0.75,
    }


def test_pictures_of_a_named_size_are_left_out_of_the_measure(noise_corpus: Path) -> None:
    corpus = Corpus(noise_corpus)
    indices = held_out_without_size(corpus)
    assert indices == [index for index in range(20, 32) if index % 5]


def test_halves_of_a_mirrored_pair_belong_to_the_other_object() -> None:
    """A recognizer that is right about both halves has a smaller loss than one that mistakes left for right."""
    labels = torch.tensor([[0, 1, 0, 0]])
    cells = torch.full((1, CLASSES.counts[0], 8, 8), 1e-4)
    cells[:, 0, :, :4] = cells[:, 1, :, 4:] = 0.9
    surroundings = torch.zeros(1, sum(CLASSES.counts[1:]))

    def loss(cells: Tensor, *, mirrored: bool) -> Tensor:
        return module._losses(cells, surroundings, labels, torch.tensor([mirrored]))["objects"]

    assert loss(cells, mirrored=False) < loss(cells, mirrored=True) - 1
    torch.testing.assert_close(loss(cells.flip(3), mirrored=True), loss(cells, mirrored=False))


def test_augmented_pictures_are_shifted_mirrored_and_of_the_same_size() -> None:
    images = torch.rand(6, 3, 32, 32)
    mirrored = torch.tensor([True, False] * 3)
    first, again = (module._augmented(images, mirrored, torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.shape == images.shape
    torch.testing.assert_close(first, again)
    opposite = module._augmented(images, ~mirrored, torch.Generator().manual_seed(4))
    torch.testing.assert_close(opposite, first.flip(3), atol=6 * module.NOISE, rtol=0)


def same_weights(one: Path, other: Path) -> bool:
    states = [Recognizer.load(folder / "model.safetensors").state_dict() for folder in (one, other)]
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.fixture
def options(noise_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecognizerOptions:
    monkeypatch.setattr(module, "Recognizer", lambda classes: Recognizer(classes, (4, 4, 4)))
    return RecognizerOptions(corpus=noise_corpus, out=tmp_path / "out", work=tmp_path / "work", steps=2, batch=4)


def test_training_writes_what_it_returns_and_a_finished_run_is_not_repeated(
    options: RecognizerOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = Corpus(options.corpus)
    recognizer = train_recognizer(corpus, options)
    written = Recognizer.load(options.out / "model.safetensors")
    assert (written.classes, written.widths) == (CLASSES, (4, 4, 4))
    pictures = np.array(corpus.pictures[:3])
    torch.testing.assert_close(written.scores(pictures), recognizer.scores(pictures), atol=0.05, rtol=0.05)
    elsewhere = replace(options, out=tmp_path / "elsewhere")
    main(elsewhere)
    assert same_weights(options.out, elsewhere.out)
    assert "both_objects_recognized" in capsys.readouterr().out


def test_held_out_pictures_are_not_learned_from(options: RecognizerOptions) -> None:
    train_recognizer(Corpus(options.corpus), options)
    pictures = np.load(options.corpus / "pictures.npy")
    pictures[20:] = 0
    np.save(options.corpus / "pictures.npy", pictures)
    other = replace(options, out=options.work / "other", work=options.work / "other")
    train_recognizer(Corpus(options.corpus), other)
    assert same_weights(options.out, other.out)


def test_bad_input_is_refused_before_training(options: RecognizerOptions, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"pair_share is 1.5; it must be in 0..1"):
        replace(options, pair_share=1.5)
    with pytest.raises(OptionError, match="steps is 0; give at least 1"):
        replace(options, steps=0)
    with pytest.raises(OptionError, match="batch is 1; give at least 2"):
        replace(options, batch=1)
    with pytest.raises(CorpusError, match=r"has no scenes\.jsonl"):
        main(replace(options, corpus=tmp_path / "nowhere"))
    assert not options.out.exists()
