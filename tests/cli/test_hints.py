import pytest

from command_line import fails
from moongate import cli
from moongate.cli.hints import OTHER_NAMES, options_of


def test_each_hint_leads_to_an_option_and_is_none_itself() -> None:
    options = {name for command in cli.__all__ if command != "main" for name in options_of(getattr(cli, command))}
    assert {ours.removeprefix("--") for ours in OTHER_NAMES.values()} <= options
    assert all(name == name.lower().replace("_", "-") for name in OTHER_NAMES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "a dog", "--cfg", "7"], "There is no option --cfg. In Moongate it is called --guidance."),
        (["generate", "a dog", "--cfg=7"], "it is called --guidance."),
        (["generate", "a dog", "--lora", "a"], "it is called --concept."),
        (["train", "photos", "--train_batch_size", "2"], "it is called --batch."),
        (["train", "photos", "--gradient_checkpointing"], "it is called --recompute."),
        (["train", "photos", "--trigger-word", "rex"], "it is called --token."),
        (["train", "--instance_data_dir", "photos"], "Name the folder of pictures without an option"),
        (["train", "photos", "--guidance_scale", "7"], "it is called --guidance, which this command does not have."),
        (["convert", "a", "--base", "b"], "it is called --model."),
        (["retrieve", "search", "a dog", "--num_images", "3"], "it is called --count."),
        (["demo", "--output-dir", "here"], "it is called --out."),
    ],
)
def test_an_option_of_another_program_is_answered_with_its_name_here(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, *words)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["generate", "a dog", "--prompts-file", "a", "--prompts-file=b"], "--prompts-file"),
        (["train", "photos", "--lr_per_picture", "1e-5", "--lr-per-picture", "1e-6"], "--lr-per-picture"),
        (["demo", "--seed", "1", "--seed", "2"], "--seed"),
        (["tokens", "suggest", "a", "--occurrences", "1", "2", "--occurrences", "1", "3"], "--occurrences"),
    ],
)
def test_an_option_of_one_value_is_not_given_twice(
    words: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{name} is given 2 times, but counts once." in fails(capsys, *words)


@pytest.mark.parametrize("twice", [["--concept", "a", "--concept", "b"], ["--overwrite", "--overwrite"]])
def test_options_that_collect_values_and_flags_may_be_given_twice(
    twice: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "steps is 0" in fails(capsys, "generate", "a dog", "--steps", "0", *twice)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train dogs cats --category dog cat", "--category takes one value each time, but 2 follow it."),
        ("train dogs cats --category=dog cat", "Repeat it: --category dog --category cat."),
        ("demo compose --example jar tulip", "Repeat it: --example jar --example tulip."),
        ("fleet jobs.yaml --device cuda:0 cuda:1", "Repeat it: --device cuda:0 --device cuda:1."),
        ("studio --watch here there", "Repeat it: --watch here --watch there."),
        ("train --category dog gone", "There is no picture or folder gone."),
    ],
)
def test_several_values_of_an_option_that_takes_one_each_time_are_explained(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, *words.split())
