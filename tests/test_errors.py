import inspect

from moongate import errors


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    drawn = errors.__doc__.split("```")[1]
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert set(errors.__all__) - {"listed"} == set(classes)
    for name, value in classes.items():
        assert name in drawn
        assert issubclass(value, errors.MoongateError)
    assert issubclass(errors.InputError, ValueError)
