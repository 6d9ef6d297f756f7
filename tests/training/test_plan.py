import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data import Regularization, Subject
from moongate.errors import BaseMismatchError, MoongateWarning, OptionError, TokenError
from moongate.training import Plan, TrainOptions, train
from moongate.training.method import METHODS

METHOD = METHODS["custom-diffusion"]
MakeSubject = Callable[..., Subject]


@pytest.fixture
def earlier(tiny: Backbone, make_subject: MakeSubject, prior: Regularization) -> Concept:
    return train(tiny, [make_subject("<one>", seed=1)], [prior], METHOD, options=TrainOptions(steps=1, batch=1))


@pytest.fixture
def no_work(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test fail where a model would be run."""
    for name in ("encode_images", "encode_text", "predict"):
        monkeypatch.setattr(tiny, name, None)


@pytest.mark.usefixtures("no_work")
def test_a_plan_resolves_what_the_options_leave_open(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    subjects = [make_subject("<one>"), make_subject("<two>", category="cat"), make_subject(None, category="dog")]
    plan = Plan.of(tiny, subjects, [prior] * 3, METHOD)
    assert (plan.steps, plan.targets_per_step, plan.pictures_per_step) == (3 * 250, 4, 8)
    assert plan.learning_rate == pytest.approx(1e-5 * tiny.settings.lr_scale * 8)
    assert torch.equal(plan.first_rows["<one>"], tiny.token_row(20))
    assert torch.equal(plan.first_rows["<two>"], tiny.token_row(30))
    assert list(plan.first_rows) == ["<one>", "<two>"]
    options = TrainOptions(steps=7, batch=3, lr_per_picture=0.01)
    plan = Plan.of(tiny, subjects, [prior] * 3, METHOD, options=options)
    assert (plan.steps, plan.targets_per_step, plan.pictures_per_step) == (7, 3, 6)
    assert plan.learning_rate == pytest.approx(0.06)


@pytest.mark.usefixtures("no_work")
def test_a_model_may_say_that_fewer_steps_suit_it(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = [make_subject("<one>"), make_subject("<two>", category="cat")]
    for scale, joint, steps in ((0.5, None, (125, 2 * 125)), (0.5, 0.2, (125, 2 * 50)), (1e-6, None, (1, 2))):
        settings = replace(tiny.settings, steps_scale=scale, joint_steps_scale=joint)
        monkeypatch.setattr(tiny, "settings", settings)
        plans = [Plan.of(tiny, some, [prior] * len(some), METHOD) for some in (subjects[:1], subjects)]
        assert tuple(plan.steps for plan in plans) == steps
        assert Plan.of(tiny, subjects, [prior] * 2, METHOD, options=TrainOptions(steps=7)).steps == 7


@pytest.mark.usefixtures("no_work")
def test_tokens_learn_as_fast_as_the_weights_unless_the_model_or_an_option_says_otherwise(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(options: TrainOptions | None = None) -> Plan:
        return Plan.of(tiny, [make_subject()], [prior], METHOD, options=options)

    assert made().token_learning_rate == made().learning_rate
    assert "token_learning_rate" not in made().config
    monkeypatch.setattr(tiny, "settings", replace(tiny.settings, token_lr_scale=12.0))
    assert made().config["token_learning_rate"] == pytest.approx(12 * made().learning_rate)
    assert made(TrainOptions(token_lr_scale=1)).token_learning_rate == made().learning_rate
    options = TrainOptions(learning_rate=3e-4, token_lr_scale=2)
    assert made(options).token_learning_rate == pytest.approx(6e-4)
    with pytest.raises(OptionError, match="token_lr_scale is 0; it must be above 0, such as 1"):
        TrainOptions(token_lr_scale=0)


@pytest.mark.usefixtures("no_work")
def test_an_absolute_rate_is_that_of_a_whole_step(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    for batch in (1, 4):
        options = TrainOptions(learning_rate=3e-4, batch=batch)
        assert Plan.of(tiny, [make_subject()], [prior], METHOD, options=options).learning_rate == 3e-4
    with pytest.raises(OptionError, match="one of them decides"):
        TrainOptions(learning_rate=3e-4, lr_per_picture=1e-5)
    with pytest.raises(OptionError, match="learning_rate is 1.5; it must be between 0 and 1, such as 8e-5"):
        TrainOptions(learning_rate=1.5)


@pytest.mark.usefixtures("no_work")
def test_pictures_may_have_another_size_than_the_models_own(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    def planned(side: int | None) -> Plan:
        return Plan.of(tiny, [make_subject()], [prior], METHOD, options=TrainOptions(resolution_px=side))

    assert [planned(side).resolution_px for side in (None, 64, 32, 256)] == [64, 64, 32, 256]
    assert "resolution_px" not in planned(None).config
    assert planned(32).config["resolution_px"] == 32
    for wrong in (8, 60, 264, 100_000):
        with pytest.raises(OptionError, match=f"resolution is {wrong} px. .* a multiple of 8 between 16 and 256"):
            planned(wrong)


@pytest.mark.usefixtures("no_work")
def test_a_new_token_may_begin_as_a_word_that_is_one_token(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    subjects = [make_subject("<one>"), make_subject(None, category="dog"), make_subject("<two>", category="cat")]

    def planned(*words: str) -> Plan:
        options = TrainOptions(initializer_token=words)
        return Plan.of(tiny, subjects, [prior] * 3, METHOD, options=options)

    plan = planned("bear", "red")
    for token, word in (("<one>", "bear"), ("<two>", "red")):
        (token_id,) = tiny.tokenizer(word, add_special_tokens=False).input_ids
        assert torch.equal(plan.first_rows[token], tiny.token_row(token_id))
    assert plan.config["initializer_token"] == ["bear", "red"]
    with pytest.raises(OptionError, match=r"'red bear' is 2 tokens of the model \(red \+ bear\)"):
        planned("bear", "red bear")
    with pytest.raises(OptionError, match="2 new tokens begin as words, but 1 were given"):
        planned("bear")
    with pytest.raises(OptionError, match="Leave out initializer_token or rare_token"):
        TrainOptions(initializer_token=("bear",), rare_token=1)


@pytest.mark.usefixtures("no_work")
def test_losses_are_read_as_often_as_asked_and_where_a_concept_is_kept_or_looked_at(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    def read_after(**options: object) -> list[int]:
        plan = Plan.of(tiny, [make_subject()], [prior], METHOD, options=TrainOptions(steps=12, **options))
        return [step for step in range(1, 13) if plan.reports(step)]

    assert read_after() == list(range(1, 13)), "on a CPU after each step"
    assert read_after(report_steps=5) == [5, 10]
    assert read_after(report_steps=5, look_steps=4) == [4, 5, 8, 10, 12]
    assert read_after(report_steps=50, save_every=5, run_folder=tmp_path) == [5, 10, 12]


@pytest.mark.usefixtures("no_work")
def test_without_regularization_a_step_has_only_target_pictures(tiny: Backbone, make_subject: MakeSubject) -> None:
    plan = Plan.of(tiny, [make_subject()], [], METHODS["textual-inversion"])
    assert plan.pictures_per_step == plan.targets_per_step == 8
    assert plan.learning_rate == pytest.approx(5e-3 * tiny.settings.lr_scale * 8)


def test_captions_are_worded_as_the_method_wants_them(tiny: Backbone, make_subject: MakeSubject) -> None:
    subject = make_subject()
    plan = Plan.of(tiny, [subject], [], METHODS["textual-inversion"])
    assert set(plan.subjects[0].captions) == {"photo of a <bear>"}
    assert set(subject.captions) == {"photo of a <bear> bear"}


def test_the_config_is_plain_json_and_changes_with_the_pictures(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    plan = Plan.of(tiny, [make_subject()], [prior], METHOD)
    assert json.loads(json.dumps(plan.config)) == plan.config
    again = Plan.of(tiny, [make_subject()], [prior], METHOD)
    assert again.config == plan.config
    other = Plan.of(tiny, [make_subject(seed=1)], [prior], METHOD)
    assert other.config["subjects"] != plan.config["subjects"]
    fewer = replace(prior, pictures=prior.pictures[:2], captions=prior.captions[:2])
    assert Plan.of(tiny, [make_subject()], [fewer], METHOD).config["regularization"] != plan.config["regularization"]


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    "option",
    [
        {"seed": 1},
        {"steps": 7},
        {"batch": 2},
        {"flips": True},
        {"rare_token": 1},
        {"initializer_token": ("bear",)},
        {"learning_rate": 0.01},
        {"lr_per_picture": 0.01},
        {"token_lr_scale": 2.0},
        {"neutral_decay": 0.1},
        {"resolution_px": 32},
        {"shards": 2},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_that_changes_the_concept_is_in_the_config_and_no_other(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path, option: dict[str, object]
) -> None:
    """So that a resumed run cannot have another one."""

    def config(**options: object) -> dict[str, object]:
        return Plan.of(tiny, [make_subject()], [prior], METHOD, options=TrainOptions(**options)).config

    others = {"checkpoint_steps": 3, "report_steps": 2, "look_steps": 4, "recompute": True, "save_every": 2}
    assert config(**others, cache=tmp_path, run_folder=tmp_path / "run") == config()
    assert config(**option) != config()


def test_a_concept_to_start_from_decides_the_first_rare_token(
    tiny: Backbone, earlier: Concept, make_subject: MakeSubject, prior: Regularization
) -> None:
    def first(start_from: Concept, **options: object) -> int:
        subject = make_subject("<two>", category="cat")
        return Plan.of(
            tiny, [subject], [prior], METHOD, options=TrainOptions(**options), start_from=start_from
        ).rare_token

    assert first(replace(earlier, record={})) == 1
    assert first(replace(earlier, record={"rare_token": 1})) == 2
    assert first(replace(earlier, record={"rare_token": 1}), rare_token=0) == 0


def test_trainings_one_after_the_other_begin_as_each_rare_token_in_turn(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    concept, found = None, []
    for token in ("<one>", "<two>", "<three>"):
        options = TrainOptions(steps=1, batch=1)
        concept = train(tiny, [make_subject(token)], [prior], METHOD, options=options, start_from=concept)
        found.append(concept.record["rare_token"])
    assert found == [0, 1, 2]
    options = TrainOptions(steps=1, batch=1, rare_token=1)
    again = train(tiny, [make_subject("<four>")], [prior], METHOD, options=options, start_from=concept)
    assert (again.record["rare_token"], again.record["next_rare_token"]) == (1, 3), "those before stay in use"


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("batch", 0), ("checkpoint_steps", -1)])
def test_counts_of_zero_are_refused(name: str, value: int) -> None:
    with pytest.raises(OptionError, match=f"{name} is {value}; it must be at least 1"):
        TrainOptions(**{name: value})


def test_other_options_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="resume needs a run_folder"):
        TrainOptions(resume=True)
    with pytest.raises(OptionError, match="rare_token is -1; it must be at least 0"):
        TrainOptions(rare_token=-1)
    with pytest.raises(OptionError, match="lr_per_picture is 2.0; it must be between 0 and 1"):
        TrainOptions(lr_per_picture=2.0)


@pytest.mark.usefixtures("no_work")
def test_what_does_not_fit_together_is_refused_before_any_work(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    subject = make_subject()
    with pytest.raises(OptionError, match="no subject"):
        train(tiny, [], [], METHOD)
    with pytest.raises(OptionError, match="number of subjects is 1, but 0 sets of regularization pictures"):
        train(tiny, [subject], [], METHOD)
    with pytest.raises(OptionError, match="uses no regularization pictures"):
        train(tiny, [subject], [prior], METHODS["custom-diffusion-without-regularization"])
    with pytest.raises(TokenError, match="Two subjects are both called '<bear>'"):
        train(tiny, [subject, subject], [prior, prior], METHOD)
    with pytest.raises(TokenError, match="already a word"):
        train(tiny, [make_subject("bear")], [prior], METHOD)
    with pytest.raises(TokenError, match="trains only tokens, but no subject has one"):
        train(tiny, [make_subject(None)], [], METHODS["textual-inversion"])


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("names", [("<Rex>", "<rex>"), (None, None)])
def test_subjects_that_are_one_word_to_the_text_encoder_are_refused(
    tiny: Backbone, make_subject: MakeSubject, names: tuple[str | None, str | None]
) -> None:
    subjects = [make_subject(names[0], category="Bear"), make_subject(names[1], category="bear")]
    first, second = names if names[0] else ("Bear", "bear")
    with pytest.raises(TokenError, match=f"called '{first}' and '{second}', which the text encoder reads as one word"):
        Plan.of(tiny, subjects, None, METHOD)


FITTING = "photo of a red red red red red red red red red <bear> bear"
"""A caption of fourteen tokens, which is as long as the tiny text encoder reads."""


@pytest.mark.usefixtures("no_work")
def test_a_caption_that_is_cut_before_its_token_is_refused_before_any_work(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    subject, still = make_subject(), METHODS["custom-diffusion-without-augmentation"]
    Plan.of(tiny, [replace(subject, captions=(FITTING,) * 3)], [prior], still)
    late = replace(subject, captions=(*subject.captions[:2], "red " * 14 + "<bear> bear"))
    with pytest.raises(TokenError, match="Its end with '<bear>' would be cut off and not be learned"):
        train(tiny, [late], [prior], still)
    moved = replace(subject, captions=("red " * 13 + "<bear>",) * 3)
    Plan.of(tiny, [moved], [prior], still)
    with pytest.raises(TokenError, match="with 'far away' before it is longer .* with '<bear>' would be cut off"):
        Plan.of(tiny, [moved], [prior], METHOD)
    category = replace(make_subject(None), captions=("red " * 14 + "Bear",) * 3)
    with pytest.raises(TokenError, match="Its end with 'bear' would be cut off"):
        Plan.of(tiny, [category], [prior], still)


@pytest.mark.usefixtures("no_work")
def test_words_that_captions_lose_and_unknown_tokens_in_them_are_said(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    subject, still = make_subject(), METHODS["custom-diffusion-without-augmentation"]
    longer = replace(subject, captions=(f"{FITTING} in drawing", FITTING, FITTING))
    with pytest.warns(MoongateWarning, match="^1 captions are longer .* this end has no effect: 'in drawing'"):
        Plan.of(tiny, [longer], [prior], still)
    long = replace(prior, captions=(f"{FITTING.replace('<bear>', 'red')} cat", *prior.captions[1:]))
    with pytest.warns(MoongateWarning, match="1 regularization captions are longer .* this end has no effect: 'cat'"):
        Plan.of(tiny, [subject], [long], still)
    other = replace(subject, captions=("a <bear> bear on a <cat>",) * 3)
    with pytest.warns(MoongateWarning, match="'<cat>' in the caption 'a <bear> bear on a <cat>' is not a trained"):
        Plan.of(tiny, [other], [prior], still)
    judging = TrainOptions(save_every=1, run_folder=tmp_path / "run")
    with pytest.warns(MoongateWarning, match="'<cat>' in the caption 'a <bear> bear on a <cat>' is not a trained"):
        Plan.of(tiny, [subject], [prior], still, options=judging, held_out=[other])


@pytest.mark.usefixtures("no_work")
def test_everything_but_regularization_can_be_checked_before_its_pictures_are_drawn(
    tiny: Backbone, make_subject: MakeSubject
) -> None:
    assert Plan.of(tiny, [make_subject()], None, METHOD).regularization == ()
    with pytest.raises(TokenError, match="already a word"):
        Plan.of(tiny, [make_subject("bear")], None, METHOD)


def test_what_cannot_follow_a_concept_is_refused_before_any_work(
    tiny: Backbone,
    other_folder: Path,
    earlier: Concept,
    make_subject: MakeSubject,
    prior: Regularization,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = METHODS["custom-diffusion-cross-attention"]
    first = train(tiny, [make_subject("<one>")], [prior], wide, options=TrainOptions(steps=1))
    monkeypatch.setattr(tiny, "encode_images", None)

    def follow(backbone: Backbone, start_from: Concept, token: str = "<two>", rare_token: int | None = None) -> None:
        options = TrainOptions(rare_token=rare_token)
        train(backbone, [make_subject(token)], [prior], METHOD, options=options, start_from=start_from)

    with pytest.raises(TokenError, match="Two subjects are both called '<one>'"):
        follow(tiny, earlier, "<one>")
    (one,) = earlier.subjects
    wide_word = replace(
        earlier,
        tokens={"<one>": earlier.tokens["<one>"], "<one-2>": earlier.tokens["<one>"]},
        subjects=(replace(one, more_tokens=("<one-2>",)),),
    )
    with pytest.raises(TokenError, match="called '<one-2>' and '<One-2>', which the text encoder reads as one word"):
        follow(tiny, wide_word, "<One-2>")
    with pytest.raises(OptionError, match="does not train. Use the method .* 'custom-diffusion-cross-attention'"):
        follow(tiny, first)
    with pytest.raises(OptionError, match="1 new tokens need as many rare tokens from index 3 on"):
        follow(tiny, earlier, rare_token=3)
    with pytest.raises(BaseMismatchError, match="made for another model than .* Name its own: --model"):
        follow(Backbone.load(other_folder, device="cpu"), earlier)
