import json
from pathlib import Path

import pytest

from moongate.cli.subjects import SubjectOptions, subjects_from_file, subjects_from_options
from moongate.errors import MoongateWarning, OptionError

BEAR = SubjectOptions(pictures=(Path("bear"),), category="teddy bear", token="<bear>")


def test_one_category_takes_all_pictures_and_several_take_a_folder_each() -> None:
    files = [Path("a.jpg"), Path("b.jpg")]
    assert subjects_from_options(files, ["cat"], [], []) == [SubjectOptions(pictures=tuple(files), category="cat")]
    assert subjects_from_options(
        [Path("bear"), Path("chairs")], ["teddy bear", "chair"], ["<bear>", "none"], ["pool", "chairs-of-others"]
    ) == [
        SubjectOptions(pictures=(Path("bear"),), category="teddy bear", token="<bear>", regularization="pool"),
        SubjectOptions(pictures=(Path("chairs"),), category="chair", regularization="chairs-of-others"),
    ]
    both = subjects_from_options([Path("bear"), Path("cat")], ["teddy bear", "cat"], [], ["generated"])
    assert [(subject.token, subject.regularization) for subject in both] == [(None, None)] * 2, "one for all is left"


@pytest.mark.parametrize(
    ("pictures", "categories", "tokens", "regularization", "message"),
    [
        (1, [], [], [], 'Say what the pictures show, such as --category "teddy bear"'),
        (
            3,
            ["cat", "dog"],
            [],
            [],
            "--category is given 2 times, but a folder 3 times. Give one folder of pictures for each",
        ),
        (
            2,
            ["cat", "dog"],
            ["<cat>"],
            [],
            "--category is given 2 times and --token once. Give a token for each category",
        ),
        (
            3,
            ["a", "b", "c"],
            [],
            ["pool"] * 2,
            "--category is given 3 times and --regularization 2 times. Give one for each category",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_named(
    pictures: int, categories: list[str], tokens: list[str], regularization: list[str], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        subjects_from_options([Path("x")] * pictures, categories, tokens, regularization)


def test_several_folders_of_one_category_and_empty_words_are_named(tmp_path: Path) -> None:
    for name in ("cups", "cats"):
        (tmp_path / name).mkdir()
    folders = [tmp_path / "cups", tmp_path / "cats"]
    with pytest.raises(OptionError, match="2 folders and one --category were given"):
        subjects_from_options(folders, ["cup"], [], [])
    with pytest.raises(OptionError, match="A --token is empty"):
        subjects_from_options(folders[:1], ["cup"], [""], [])


YAML = """
- pictures: bear
  category: teddy bear
  token: <bear>
- pictures: [chair/1.jpg, /far/2.jpg]
  category: chair
  token: none
  regularization: chairs
- {pictures: cat, category: cat, regularization: generated}
"""


def test_a_file_is_read_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    file = tmp_path / "concepts.yaml"
    file.write_text(YAML)
    expected = [
        SubjectOptions(pictures=(tmp_path / "bear",), category="teddy bear", token="<bear>"),
        SubjectOptions(
            pictures=(tmp_path / "chair/1.jpg", Path("/far/2.jpg")),
            category="chair",
            regularization=str(tmp_path / "chairs"),
        ),
        SubjectOptions(pictures=(tmp_path / "cat",), category="cat", regularization="generated"),
    ]
    assert subjects_from_file(file) == expected
    as_json = tmp_path / "concepts.json"
    first = {"pictures": "bear", "category": "teddy bear", "token": "<bear>"}
    as_json.write_text(json.dumps([first], indent="\t"))  # which YAML does not allow
    assert subjects_from_file(as_json) == expected[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no list of subjects. Begin each with a dash"),
        ("pictures: bear", "holds no list of subjects"),
        ("- [unclosed", r"concepts.yaml cannot be read: .*line 1"),
        ("- bear", "Entry 1 of .*concepts.yaml is 'bear'. Write it as a mapping with the keys pictures, category"),
        ("- {pictures: bear, categorie: bear}", "Entry 1 .* has the unknown key 'categorie'. Known: pictures"),
        ("- {pictures: bear}", "Entry 1 .* has no category. Add it, such as 'category: teddy bear'"),
        ("- {category: bear}", "Entry 1 .* has no pictures. Add it, such as 'pictures: bear-photos'"),
        ("- {pictures: [a, 3], category: bear}", "has pictures: 3. Give text"),
        ("- {pictures: '', category: bear}", "has pictures: ''. Give text"),
        ("- pictures: a\n  category: b\n  pictures: c", "it has 'pictures' twice in one entry"),
        ("- {pictures: a, category: a}\n- {pictures: a, category: 7}", "Entry 2 .* has category: 7"),
        ("- {pictures: a, category: a, token: [x]}", r"has token: \['x'\]. Give text, such as '<bear>'"),
        ("- {pictures: a, category: a, regularization: 0}", "has regularization: 0. Give text, such as 'generated'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "concepts.yaml"
    file.write_text(text)
    with pytest.raises(OptionError, match=message):
        subjects_from_file(file)


def entry(folder: Path, **changes: object) -> list[SubjectOptions]:
    """Read a concepts_list.json of diffusers with one entry."""
    usual = {
        "instance_prompt": "photo of a <new1> cat",
        "class_prompt": "cat",
        "instance_data_dir": "./data/cat",
        "class_data_dir": "./reg/cat",
    }
    values = {key: value for key, value in (usual | changes).items() if value != ""}
    file = folder / "concepts_list.json"
    file.write_text(json.dumps([values]))
    return subjects_from_file(file)


def test_the_list_of_concepts_of_diffusers_is_read(tmp_path: Path) -> None:
    (tmp_path / "reg" / "cat").mkdir(parents=True)
    (tmp_path / "reg" / "cat" / "0.png").write_bytes(b"")
    (subject,) = entry(tmp_path)
    assert subject == SubjectOptions(
        pictures=(tmp_path / "data/cat",),
        category="cat",
        token="<new1>",
        regularization=str(tmp_path / "reg/cat"),
        caption="photo of a <new1> cat",
        class_caption="cat",
    )


def test_paths_of_diffusers_list_may_have_backslashes_or_be_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "list").mkdir()
    monkeypatch.chdir(tmp_path)
    (subject,) = entry(tmp_path / "list", instance_data_dir=".\\data\\cat", class_data_dir="")
    assert subject.pictures[0].samefile(tmp_path / "data" / "cat")
    assert subject.regularization is None


@pytest.mark.parametrize(
    ("prompt", "class_prompt", "category"),
    [
        ("photo of a <new1> teddy bear", "a photo of a teddy bear", "teddy bear"),
        ("<new1> dog", "dog, best quality", "dog"),
        ("photo of a <new1> dog on the beach", "photo of a dog on the beach", "dog"),
        ("a <new1> Cat", "The cat", "cat"),
        ("photo of <new1> wooden pot in a garden", "", "wooden pot"),
    ],
)
def test_the_category_is_what_both_prompts_of_diffusers_list_say(
    tmp_path: Path, prompt: str, class_prompt: str, category: str
) -> None:
    (subject,) = entry(tmp_path, instance_prompt=prompt, class_prompt=class_prompt, class_data_dir="")
    assert (subject.token, subject.category, subject.caption) == ("<new1>", category, prompt)


def test_what_diffusers_list_leaves_open_is_said(tmp_path: Path) -> None:
    with pytest.warns(MoongateWarning, match=r"class_data_dir .*reg/cat holds nothing, so .* are generated"):
        assert entry(tmp_path)[0].regularization == "generated"
    with pytest.warns(MoongateWarning, match="no token in angle brackets in its instance_prompt 'photo of sks cat'"):
        assert entry(tmp_path, instance_prompt="photo of sks cat", class_data_dir="")[0].token is None
    with pytest.raises(OptionError, match="no words of its class_prompt 'animal' are in the instance_prompt .* Add"):
        entry(tmp_path, class_prompt="animal")
    assert entry(tmp_path, class_prompt="animal", category="cat", class_data_dir="")[0].category == "cat"
    with pytest.raises(OptionError, match=r"Entry 1 .* has the unknown key 'steps'. Known: instance_data_dir"):
        entry(tmp_path, steps=3)
    with pytest.raises(OptionError, match="has no instance_data_dir. Add it, such as 'instance_data_dir: dog-photos'"):
        entry(tmp_path, instance_data_dir="")
    with pytest.raises(OptionError, match="has class_prompt: 7. Give text, such as 'photo of a <rex> dog'"):
        entry(tmp_path, class_prompt=7)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="There is no file of subjects .*nowhere.yaml. Check the path."):
        subjects_from_file(tmp_path / "nowhere.yaml")


def test_a_file_is_named_after_the_token_or_else_after_the_category() -> None:
    assert BEAR.file_name == "bear"
    assert SubjectOptions(pictures=(), category="teddy bear").file_name == "teddy-bear"


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "concepts.yaml").write_bytes("- pictures: café".encode("latin-1"))
    with pytest.raises(OptionError, match=r"concepts.yaml cannot be read: it is not text in UTF-8"):
        subjects_from_file(tmp_path / "concepts.yaml")


def test_the_home_folder_may_be_written_as_a_tilde_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    file = tmp_path / "lists" / "concepts.yaml"
    file.parent.mkdir()
    file.write_text("- {pictures: [~/bear, ~bear], category: bear, regularization: ~/bears}\n")
    (subject,) = subjects_from_file(file)
    assert subject.pictures == (tmp_path / "bear", file.parent / "~bear"), "a name may begin with a tilde"
    assert subject.regularization == str(tmp_path / "bears")
