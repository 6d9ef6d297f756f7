import inspect

import pytest

from moongate import errors


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    drawn = errors.__doc__.split("```")[1]
    members = vars(errors).items()
    classes = {name: value for name, value in members if inspect.isclass(value) and issubclass(value, Exception)}
    assert set(errors.__all__) - {"first_line", "listed", "shortened", "warn"} == set(classes)
    assert issubclass(classes.pop("MoongateWarning"), UserWarning)
    for name, value in classes.items():
        assert name in drawn
        assert issubclass(value, errors.MoongateError)
    assert issubclass(errors.InputError, ValueError)


def test_the_first_line_of_an_error_is_a_sentence_also_where_it_has_none() -> None:
    assert errors.first_line(ValueError("\n  no such file\nand more")) == "no such file."
    assert errors.first_line(OSError("It ended.")) == "It ended."
    assert errors.first_line(KeyError()) == "KeyError."


def test_an_error_is_formatted_as_its_message() -> None:
    assert f"{errors.TokenError('Two concepts'):.3}|{errors.OptionError('short'):>6}" == "Two| short"


def test_a_warning_names_the_line_that_called_the_library() -> None:
    def library() -> None:
        errors.warn("a text")

    with pytest.warns(errors.MoongateWarning, match="a text") as caught:
        library()
    assert caught[0].filename == __file__


def test_a_long_list_is_cut_and_its_rest_counted() -> None:
    assert errors.listed(["a", "b"], at_most=2) == "a; b"
    assert errors.listed(list("abcd"), at_most=2) == "a; b; and 2 more"


def test_a_long_text_is_shortened_to_whole_words() -> None:
    assert errors.shortened("a short one") == "a short one"
    assert errors.shortened("one two three", at_most=9) == "one two ..."
    assert errors.shortened("x" * 20, at_most=9) == "x" * 9 + " ..."
