import pytest
import torch

from moongate.backbone import Backbone
from moongate.backbone.settings import Settings
from moongate.errors import BackboneError, OptionError
from moongate.training.method import METHODS, Method, initial_rows, method_for, trainable

METHOD = METHODS["custom-diffusion"]
CAPTION = "photo of a <bear> bear"


def gradients(tiny: Backbone, method: Method, *, caption_rows: slice) -> dict[str, torch.Tensor]:
    """Gradients of the keys and values when only the text features of some positions are not zero."""
    with trainable(tiny, method, {"<bear>": tiny.token_row(20)}) as moving:
        text = tiny.encode_text([CAPTION])
        shown = text.zeroed()
        shown.features[:, caption_rows] = text.features[:, caption_rows]
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        tiny.predict(noisy, torch.tensor([500]), shown).square().sum().backward()
        return {name: weight.grad.clone() for name, weight in moving.weights.items()}


def test_the_start_token_alone_moves_nothing_unless_asked(tiny: Backbone) -> None:
    stopped = gradients(tiny, METHOD, caption_rows=slice(0, 1))
    assert all(not gradient.any() for gradient in stopped.values())
    others = gradients(tiny, METHOD, caption_rows=slice(1, None))
    assert all(gradient.any() for gradient in others.values())
    let_through = gradients(tiny, Method(name="open", stops_start_token=False), caption_rows=slice(0, 1))
    assert all(gradient.any() for name, gradient in let_through.items() if ".to_v." in name)


def test_only_the_weights_of_the_method_can_move(tiny: Backbone) -> None:
    with trainable(tiny, METHOD, {"<bear>": tiny.token_row(20)}) as moving:
        learning = {f"unet.{name}" for name, weight in tiny.unet.named_parameters() if weight.requires_grad}
        assert learning == set(tiny.weights("cross-attention-kv")) == set(moving.weights)
        assert not any(weight.requires_grad for weight in tiny.text_encoder.parameters())
        assert len(moving.parameters()) == len(learning) + 1
    with trainable(tiny, METHODS["custom-diffusion-fixed-token"], {"<bear>": tiny.token_row(20)}) as moving:
        assert len(moving.parameters()) == len(learning)


def test_tokens_begin_as_distinct_rare_tokens_taken_by_id(tiny: Backbone) -> None:
    rows = initial_rows(tiny, dict.fromkeys(("<a>", "<b>"), "bear"), METHOD, torch.Generator())
    table = tiny.text_encoder.get_input_embeddings().weight
    assert torch.equal(rows["<a>"], table[20])
    assert torch.equal(rows["<b>"], table[30])
    with pytest.raises(OptionError, match=r"4 new tokens need .* from index 0 on, but .* has 3 rare tokens in all"):
        initial_rows(tiny, dict.fromkeys("abcd", "bear"), METHOD, torch.Generator())


def test_random_tokens_have_the_mean_and_the_standard_deviation_of_words_in_each_dimension(tiny: Backbone) -> None:
    method = METHODS["custom-diffusion-random-token"]
    names = [f"<{number}>" for number in range(2000)]
    table = tiny.text_encoder.get_input_embeddings().weight
    before = table.detach().clone()
    with torch.no_grad():
        table[:, 0] += 3.0
    try:
        rows = initial_rows(tiny, dict.fromkeys(names, "bear"), method, torch.Generator().manual_seed(0))
        drawn, words = torch.stack(list(rows.values())), table.detach()
        standard_error = words.std(0) / len(names) ** 0.5
        assert ((drawn.mean(0) - words.mean(0)).abs() < 5 * standard_error).all()
        torch.testing.assert_close(drawn.std(0), words.std(0), rtol=0.1, atol=0)
    finally:
        with torch.no_grad():
            table.copy_(before)


def test_decay_pulls_toward_the_pretrained_weights_and_not_toward_zero(tiny: Backbone) -> None:
    with trainable(tiny, METHOD, {}) as moving:
        name, weight = next(iter(moving.weights.items()))
        with torch.no_grad():
            weight.add_(1.0)
        moving.decay(torch.tensor(0.25))
        torch.testing.assert_close(weight - moving.pretrained[name], torch.full_like(weight, 0.75))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr_per_picture": 0.0}, "lr_per_picture is 0.0; it must be above 0"),
        ({"prior_weight": -1.0}, "prior_weight is -1.0; it must be 0 or more"),
        ({"weights": None, "trains_tokens": False}, "trains neither weights nor tokens"),
    ],
)
def test_a_method_with_a_number_out_of_range_or_nothing_to_train_is_refused(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        Method(name="wrong", **wrong)


def test_concepts_trained_apart_can_begin_as_different_rare_tokens(tiny: Backbone) -> None:
    rows = initial_rows(tiny, {"<b>": "bear"}, METHOD, torch.Generator(), first=1)
    assert torch.equal(rows["<b>"], tiny.token_row(30))
    with pytest.raises(OptionError, match=r"from index 3 on.*has 3 rare tokens"):
        initial_rows(tiny, {"<b>": "bear"}, METHOD, torch.Generator(), first=3)


def test_a_token_can_begin_as_the_word_of_its_category(tiny: Backbone) -> None:
    """The paper's approximations (App. D): the longest piece of the last word."""
    method = METHODS["textual-inversion"]
    expected = {"dog": "dog</w>", "teddy bear": "bear</w>", "bearq": "bea", "qbear": "bear</w>"}
    rows = initial_rows(tiny, dict(zip("abcd", expected, strict=True)), method, torch.Generator())
    vocabulary = tiny.tokenizer.get_vocab()
    for row, piece in zip(rows.values(), expected.values(), strict=True):
        assert torch.equal(row, tiny.token_row(vocabulary[piece]))


def test_learning_rates_and_steps_are_those_of_the_paper_at_eight_pictures() -> None:
    """Appendix D; without regularization half the steps with as many target pictures (Sec. 4.4)."""
    paper = {
        "custom-diffusion": (8e-5, 250),
        "fine-tune-all": (8e-6, 500),
        "dreambooth": (1e-6, 2500),
        "textual-inversion": (0.04, 5000),
        "custom-diffusion-without-regularization": (8e-5, 125),
    }
    for name, (learning_rate, steps) in paper.items():
        method = METHODS[name]
        pictures = method.targets_per_step * (2 if method.prior_weight else 1)
        assert pictures == 8
        assert method.lr_per_picture * pictures == pytest.approx(learning_rate)
        assert method.steps_per_subject == steps
    with_prior, without = METHODS["custom-diffusion"], METHODS["custom-diffusion-without-regularization"]
    seen = [method.targets_per_step * method.steps_per_subject for method in (with_prior, without)]
    assert seen[0] == seen[1]


def test_a_method_may_word_captions_with_the_token_alone() -> None:
    words = {"token": "<bear>", "category": "teddy bear"}
    assert METHODS["textual-inversion"].worded("a <bear> teddy bear in red", **words) == "a <bear> in red"
    assert METHODS["textual-inversion"].worded("a <bear> teddy bears", **words) == "a <bear> teddy bears"
    assert METHODS["textual-inversion"].worded("a <bear> Teddy Bear", **words) == "a <bear>", "CLIP reads no case"
    assert METHODS["dreambooth"].worded("a <bear> teddy bear", **words) == "a <bear> teddy bear"
    assert METHODS["textual-inversion"].worded("a teddy bear", token=None, category="teddy bear") == "a teddy bear"


def test_a_models_settings_choose_the_method_unless_one_is_named(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert method_for(tiny).name == "custom-diffusion"
    monkeypatch.setattr(tiny, "settings", Settings(method="textual-inversion"))
    assert method_for(tiny).name == "textual-inversion"
    assert method_for(tiny, "dreambooth").name == "dreambooth"
    monkeypatch.setattr(tiny, "settings", Settings(method="magic"))
    with pytest.raises(BackboneError, match=r"moongate.json of .* sets method. Unknown method 'magic'. Known: custom"):
        method_for(tiny)
    with pytest.raises(OptionError, match="Unknown method 'spell'"):
        method_for(tiny, "spell")
