import _thread
import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from command_line import fails, run
from conftest import make_tokenizer, text_config, write_pictures
from moongate import training
from moongate.concept import Concept
from moongate.data.pictures import read_picture
from moongate.demo.pair import EXAMPLES, Composition, Way
from original_layout import write_configuration, write_single_file


@pytest.fixture
def regularization(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "bears", count=4, seed=1)
    return tmp_path / "bears"


@pytest.fixture
def arguments(pictures: Path, tiny_folder: Path, regularization: Path, tmp_path: Path) -> list[object]:
    out = tmp_path / "bear.safetensors"
    source = ["train", pictures, "--category", "teddy bear", "--token", "<bear>", "--model", tiny_folder]
    return [*source, "--regularization", regularization, "--out", out, "--steps", 3, "--device", "cpu"]


@pytest.fixture
def concept(arguments: list[object], tmp_path: Path) -> Path:
    run(*arguments)
    return tmp_path / "bear.safetensors"


def test_train_writes_the_concept_and_a_run_folder(
    arguments: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*arguments, "--validate-every", 2)
    concept = Concept.load(tmp_path / "bear.safetensors")
    assert concept.subjects[0].words == "<bear> teddy bear"
    folder = tmp_path / "bear.run"
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.jsonl", "state.pt", "validation"}
    with Image.open(folder / "validation" / "00002.png") as sheet:
        assert sheet.width > 4 * 64
    assert "moongate generate" in capsys.readouterr().out


def test_validation_pictures_do_not_change_the_concept(arguments: list[object], tmp_path: Path) -> None:
    run(*arguments)
    plain = Concept.load(tmp_path / "bear.safetensors").hash
    run(*arguments, "--validate-every", 1, "--overwrite")
    assert Concept.load(tmp_path / "bear.safetensors").hash == plain


def test_ctrl_c_then_resume_gives_the_concept_of_an_uninterrupted_run(
    arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*arguments)
    whole = Concept.load(tmp_path / "bear.safetensors").hash
    (tmp_path / "bear.safetensors").unlink()
    shutil.rmtree(tmp_path / "bear.run")

    def press(*_arguments: object) -> None:
        _thread.interrupt_main()  # as Ctrl-C does

    monkeypatch.setattr("moongate.cli.train._validate", press)
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, "--validate-every", 1)
    monkeypatch.undo()
    assert stopped.value.code == 130
    assert "the same command with --resume continues" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "bear.safetensors").exists()
    run(*arguments, "--resume")
    assert Concept.load(tmp_path / "bear.safetensors").hash == whole


def test_ctrl_c_before_the_first_step_promises_no_state(
    arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "Batches", press)
    with pytest.raises(SystemExit):
        run(*arguments)
    assert "No step was done, nothing is kept." in capsys.readouterr().out


def test_generated_regularization_pictures_are_drawn_once(
    pictures: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bear.safetensors"
    command = ["train", pictures, "--category", "bear", "--model", tiny_folder, "--out", out, "--steps", 1]
    run(*command, "--regularization-count", 2, "--device", "cpu")
    folder = tmp_path / "bear.run" / "regularization" / "bear"
    assert sorted(path.name for path in folder.glob("*.png")) == ["0000.png", "0001.png"]
    assert (folder / "0000.txt").read_text() == "photo of a bear"
    before = (folder / "0000.png").stat().st_mtime_ns
    run(*command, "--regularization-count", 2, "--device", "cpu", "--overwrite")
    assert (folder / "0000.png").stat().st_mtime_ns == before
    assert "regularization-count is 0" in fails(capsys, *command, "--regularization-count", 0, "--overwrite")


def test_pictures_that_another_model_drew_were_taken_for_its_own(
    pictures: Path, tiny_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    command = ["train", pictures, "--category", "bear", "--out", tmp_path / "bear.safetensors", "--steps", 1]
    command += ["--regularization-count", 2, "--device", "cpu", "--overwrite"]
    run(*command, "--model", tiny_folder)
    picture = tmp_path / "bear.run" / "regularization" / "bear" / "0000.png"
    before = picture.read_bytes()
    run(*command, "--model", other_folder)
    assert picture.read_bytes() != before
    run(*command, "--model", other_folder, "--preset", "style")
    assert picture.with_suffix(".txt").read_text() == "painting in the style of bear"


@pytest.fixture
def two(pictures: Path, tmp_path: Path) -> list[object]:
    """The repeated-option form for two things, less the options that all runs need."""
    write_pictures(tmp_path / "dogs", count=2, seed=3)
    bear, dog = ["--category", "teddy bear", "--token", "<bear>"], ["--category", "dog", "--token", "<dog>"]
    return ["train", pictures, tmp_path / "dogs", *bear, *dog]


def test_repeated_options_and_a_file_teach_the_same_things_together(
    two: list[object], arguments: list[object], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = arguments[6:10] + arguments[12:]  # the model, the regularization pictures, steps and device
    monkeypatch.chdir(tmp_path)
    run(*two, *rest)
    joint = Concept.load("bear-dog.safetensors")
    assert [subject.words for subject in joint.subjects] == ["<bear> teddy bear", "<dog> dog"]
    assert list(joint.tokens) == ["<bear>", "<dog>"]
    listed = [
        {"pictures": str(pictures), "category": "teddy bear", "token": "<bear>"},
        {"pictures": "dogs", "category": "dog", "token": "<dog>", "regularization": "bears"},
    ]
    (tmp_path / "concepts.yaml").write_text(json.dumps(listed))
    run("train", "--concepts", "concepts.yaml", *rest, "--out", "listed.safetensors", "--validate-every", 3)
    assert Concept.load("listed.safetensors").hash == joint.hash
    assert (tmp_path / "listed.run" / "validation" / "00003.png").is_file()


def test_a_file_and_options_that_say_the_same_are_refused(
    two: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "leave out pictures, --category and --token" in fails(capsys, *two, "--concepts", tmp_path / "c.yaml")
    several = ["--regularization", "pool", "--regularization", "generated"]
    assert "Write those that differ into the file" in fails(capsys, "train", "--concepts", "c.yaml", *several)
    assert "no file of concepts" in fails(capsys, "train", "--concepts", tmp_path / "c.yaml")


def test_each_category_has_its_own_generated_pictures(two: list[object], tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.safetensors"
    rest = ["--regularization", "generated", "--regularization-count", 1, "--device", "cpu"]
    run(*two, "--model", tiny_folder, "--out", out, "--steps", 1, *rest)
    drawn = tmp_path / "both.run" / "regularization"
    assert (drawn / "teddy-bear" / "0000.txt").read_text() == "photo of a teddy bear"
    assert (drawn / "dog" / "0000.txt").read_text() == "photo of a dog"


def test_what_cannot_be_taught_together_stops_before_pictures_are_drawn(
    two: list[object], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("moongate.cli.regularization._draw", None)
    alike = [*two[:-1], "<bear>"]
    assert "Two subjects are both called '<bear>'" in fails(capsys, *alike, "--model", tiny_folder)


def test_sequential_training_goes_on_from_a_concept_and_resumes(
    concept: Path, pictures: Path, regularization: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dog.safetensors"
    command = ["train", pictures, "--category", "dog", "--token", "<dog>", "--start-from", concept, "--out", out]
    command += ["--regularization", regularization, "--device", "cpu"]
    run(*command, "--steps", 3)
    assert "a <bear> teddy bear and a <dog> dog on the beach" in capsys.readouterr().out
    both = Concept.load(out)
    assert [subject.words for subject in both.subjects] == ["<bear> teddy bear", "<dog> dog"]
    assert both.base == Concept.load(concept).base
    assert torch.equal(both.tokens["<bear>"], Concept.load(concept).tokens["<bear>"])
    shorter = tmp_path / "shorter.safetensors"
    command[-5] = shorter
    run(*command, "--steps", 1)
    run(*command, "--steps", 3, "--resume")
    assert Concept.load(shorter).hash == both.hash


def test_generate_writes_pictures_that_tell_how_they_were_made(concept: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    (tmp_path / "more.txt").write_text("a dog\n\na red chair\n")
    command = ["generate", "photo of a <bear> teddy bear", "--prompts-file", tmp_path / "more.txt"]
    run(*command, "--concept", concept, "--count", 2, "--seed", 5, "--steps", 2, "--out", out, "--device", "cpu")
    names = {path.name for path in out.iterdir()}
    assert names == {
        *(f"{stem}-{seed}.png" for stem in ("photo-of-a-bear-teddy-bear", "a-dog", "a-red-chair") for seed in (5, 6)),
        "contact-sheet.png",
    }
    with Image.open(out / "photo-of-a-bear-teddy-bear-6.png") as picture:
        text = picture.text
    assert text["prompt"] == "photo of a <bear> teddy bear"
    assert text["seed"] == "6"
    record = json.loads(text["moongate"])
    assert record["concepts"] == [{"hash": Concept.load(concept).hash, "strength": 1.0}]
    assert record["steps"] == 2


def test_a_concept_at_strength_zero_draws_what_the_base_draws(concept: Path, tiny_folder: Path, tmp_path: Path) -> None:
    rest = ["--count", 1, "--steps", 2, "--device", "cpu"]
    run("generate", "a dog", "--model", tiny_folder, "--out", tmp_path / "base", *rest)
    run("generate", "a dog", "--concept", f"{concept}:0", "--out", tmp_path / "zero", *rest)
    run("generate", "a dog", "--concept", concept, "--out", tmp_path / "one", *rest)
    pictures = []
    for name in ("base", "zero", "one"):
        with Image.open(tmp_path / name / "a-dog-0.png") as picture:
            pictures.append(picture.tobytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_info_tells_what_is_in_the_file(concept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    run("info", concept, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens"] == ["<bear>"]
    assert facts["class words"] == ["teddy bear"]
    assert facts["prompts"] == ["photo of a <bear> teddy bear"]
    assert facts["method"] == "custom-diffusion"
    assert facts["layers"].startswith("14 weights")
    assert {"base", "fingerprint", "size", "steps", "seed"} <= set(facts)
    run("info", concept)
    assert "<bear>" in capsys.readouterr().out


def test_bad_input_to_train_is_named_before_any_work(
    arguments: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(training, "Batches", None)

    def replaced(option: str, value: object) -> list[object]:
        index = arguments.index(option) + 1
        return [*arguments[:index], value, *arguments[index + 1 :]]

    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in fails(capsys, "train", tmp_path / "empty", *arguments[2:])
    assert "No pictures were given" in fails(capsys, "train", *arguments[2:])
    assert "category is empty" in fails(capsys, *replaced("--category", ""))
    assert "'bear' is already a word" in fails(capsys, *replaced("--token", "bear"))
    assert "steps is 0" in fails(capsys, *replaced("--steps", 0))
    assert "batch is 0" in fails(capsys, *arguments, "--batch", 0)
    assert "Unknown method 'magic'. Known: custom-diffusion" in fails(capsys, *arguments, "--method", "magic")
    assert "cannot be loaded" in fails(capsys, *replaced("--model", tmp_path / "nowhere"))
    assert "no picture or folder" in fails(capsys, *replaced("--regularization", tmp_path / "nowhere"))
    assert "no collection to retrieve from" in fails(capsys, *replaced("--regularization", "retrieved"))
    assert "There is no collection in" in fails(
        capsys, *replaced("--regularization", "auto"), "--collection", tmp_path / "nowhere"
    )
    assert "holdout is 3" in fails(capsys, *arguments, "--holdout", 3)
    assert "to resume from" in fails(capsys, *arguments, "--resume")
    assert "is a folder" in fails(capsys, *replaced("--out", tmp_path / "empty"))
    (tmp_path / "bear.safetensors").write_text("mine")
    assert "exists already" in fails(capsys, *arguments)
    assert (tmp_path / "bear.safetensors").read_text() == "mine"


def test_an_existing_run_stops_before_regularization_pictures_are_drawn(
    concept: Path, arguments: list[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    concept.unlink()
    monkeypatch.setattr("moongate.cli.regularization._draw", None)
    generated = [*arguments[:-8], "--regularization", "generated", "--out", concept]
    assert "holds another run" in fails(capsys, *generated)


def test_bad_input_to_generate_is_named(
    concept: Path, tiny_folder: Path, other_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["generate", "--model", tiny_folder, "--out", tmp_path / "drawn", "--device", "cpu", "--steps", 1]
    assert "There is no prompt" in fails(capsys, *base)
    assert "no file of prompts" in fails(capsys, *base, "--prompts-file", tmp_path / "nowhere")
    assert "count is 0" in fails(capsys, *base, "--count", 0, "--", "a dog")
    with_concept = ["generate", "a <cat> dog", "--concept", concept, "--out", tmp_path / "drawn", "--device", "cpu"]
    assert "unknown token '<cat>'. Known tokens: <bear>" in fails(capsys, *with_concept)
    assert "There is no concept file" in fails(capsys, *base, "--concept", tmp_path / "nowhere", "--", "a dog")
    torch.save({}, tmp_path / "old.bin")
    assert "is of no format that Moongate reads" in fails(
        capsys, *base, "--concept", tmp_path / "old.bin", "--", "a dog"
    )
    other = ["generate", "a dog", "--model", other_folder, "--concept", concept, "--out", tmp_path / "drawn"]
    assert "was made for" in fails(capsys, *other)
    assert not (tmp_path / "drawn").exists()
    run("generate", "a dog", "--model", tiny_folder, "--out", tmp_path / "drawn", "--count", 1, "--steps", 1)
    once_more = ["generate", "a dog", "--model", tiny_folder, "--out", tmp_path / "drawn", "--count", 1]
    assert "exists already" in fails(capsys, *once_more)
    assert "Two prompts are the same" in fails(capsys, "generate", "a dog", *once_more[1:], "--overwrite")


def test_errors_in_square_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "[red]cat.safetensors" in fails(capsys, "info", tmp_path / "[red]cat.safetensors")


def test_demo_is_single_unless_two_are_to_be_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[object, dict[str, object]]] = []

    def single(name: str, **options: object) -> Path:
        asked.append((name, options))
        return tmp_path / "single.html"

    def compose(names: tuple[str, ...], **options: object) -> Composition:
        asked.append((names, options))
        seen = torch.tensor([[True, True], [True, False], [False, False], [True, False]])
        way = Way(name="joint", seconds=7.0, pictures={}, seen=seen)
        return Composition(page=tmp_path / "both.html", head=("way", "both", "jar", "pot", "seconds"), ways=(way,))

    monkeypatch.setattr("moongate.demo.single.make_demo", single)
    monkeypatch.setattr("moongate.demo.pair.make_compose_demo", compose)
    run("demo")
    run("demo", "--example", "jar", "--steps", 3, "--out", "here")
    run("demo", "compose")
    run("demo", "compose", "--example", "jar", "--example", "teapot", "--count", 2)
    assert [name for name, _ in asked] == ["drawn-house", "jar", EXAMPLES, ("jar", "teapot")]
    assert [options["out"] for _, options in asked] == [
        Path(p) for p in ("demo", "here", "demo/compose", "demo/compose")
    ]
    assert (asked[1][1]["steps"], asked[3][1]["count"]) == (3, 2)
    printed = capsys.readouterr().out
    assert re.search(r"joint\W+25%\W+75%\W+25%\W+7", printed)
    assert "both.html" in printed
    assert "`moongate demo compose` takes two" in fails(capsys, "demo", "--example", "jar", "--example", "teapot")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_merge_writes_a_concept_and_a_report(concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "both.safetensors", tmp_path / "report"
    run("merge", concept, concept, "--out", out, "--report", report, "--device", "cpu")
    assert list(Concept.load(out).tokens) == ["<bear>", "<bear2>"]
    assert "the later one's is now <bear2>" in capsys.readouterr().out
    facts = json.loads((report / "report.json").read_text())
    assert [fit["words"] for fit in facts["subjects"]] == ["<bear> teddy bear", "<bear2> teddy bear"]
    assert (report / "index.html").is_file()
    assert len(list((tmp_path / "cache" / "moongate").iterdir())) == 1
    run("merge", out, "--without", "<bear2>", "--out", tmp_path / "one.safetensors", "--device", "cpu")
    assert list(Concept.load(tmp_path / "one.safetensors").tokens) == ["<bear>"]


def test_merge_refuses_before_it_works(concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "exists already" in fails(capsys, "merge", concept, "--out", concept)
    missing = tmp_path / "missing.txt"
    out = tmp_path / "out.safetensors"
    assert str(missing) in fails(capsys, "merge", concept, "--captions", missing, "--out", out)
    assert "no concept to merge" in fails(capsys, "merge", "--out", out)
    assert not out.exists()


def test_compress_writes_a_smaller_file(concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.safetensors"
    run("compress", concept, "--energy", 0.3, "--out", out)
    assert out.stat().st_size < concept.stat().st_size
    assert all(change.rank >= 1 for change in Concept.load(out).deltas.values())
    assert "was cut away" in capsys.readouterr().out
    assert "above 0 and at most 1" in fails(capsys, "compress", concept, "--energy", 2, "--out", tmp_path / "x.st")


def test_concepts_loaded_together_are_merged_added_or_refused(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Concept.load(concept)
    other = base.renamed({"<bear>": "<other>"}).save(tmp_path / "other.safetensors")
    command = ["generate", "a <bear> and a <other>", "--concept", concept, other]
    rest = ["--count", 1, "--steps", 2, "--device", "cpu"]
    run(*command, *rest, "--out", tmp_path / "merged")
    assert "Neutral captions drift" in capsys.readouterr().out
    run(*command, *rest, "--out", tmp_path / "added", "--together", "add")
    pictures = [next((tmp_path / name).glob("a-*.png")) for name in ("merged", "added")]
    assert len({Image.open(path).tobytes() for path in pictures}) == 2
    assert "--together refuse" in fails(capsys, *command, "--together", "refuse", "--out", tmp_path / "no")
    spoilt = ["generate", "a dog", "--concept", f"{concept}:nan", "--out", tmp_path / "no"]
    assert "bear.safetensors is nan. Give a number" in fails(capsys, *spoilt)


def test_every_command_works_on_every_family(
    family_folder: Path, pictures: Path, regularization: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "bear.safetensors", tmp_path / "cat.safetensors"]
    for file, number in zip(files, (0, 1), strict=True):
        words = ["--category", file.stem, "--token", f"<{file.stem}>", "--rare-token", number]
        source = ["train", pictures, *words, "--model", family_folder, "--regularization", regularization]
        run(*source, "--out", file, "--steps", 2, "--batch", 1, "--validate-every", 2, "--device", "cpu")
        assert (file.with_suffix(".run") / "validation" / "00002.png").is_file()
    capsys.readouterr()
    run("info", files[0], "--json")
    assert json.loads(capsys.readouterr().out)["tokens"] == ["<bear>"]
    both, small = tmp_path / "both.safetensors", tmp_path / "small.safetensors"
    run("merge", *files, "--contexts", 1, "--out", both, "--device", "cpu")
    run("compress", both, "--out", small)
    for file in (both, small):
        assert Concept.load(file).token_widths == Concept.load(files[0]).token_widths
        prompt, out = "photo of a <bear> bear and a <cat> cat", tmp_path / file.stem
        run("generate", prompt, "--concept", file, "--count", 1, "--steps", 2, "--out", out, "--device", "cpu")
        assert len(list(out.glob("*-0.png"))) == 1


def test_a_single_file_with_its_configuration_goes_through_the_commands(
    family_folder: Path, pictures: Path, regularization: Path, tmp_path: Path
) -> None:
    file = write_single_file(family_folder, tmp_path / "base.safetensors")
    base = ["--config", write_configuration(family_folder, tmp_path / "configuration"), "--device", "cpu"]
    out, drawn = tmp_path / "bear.safetensors", tmp_path / "drawn"
    source = ["train", pictures, "--category", "bear", "--token", "<bear>", "--model", file]
    run(*source, "--regularization", regularization, "--steps", 1, "--batch", 1, "--out", out, *base)
    run("generate", "a <bear> bear", "--concept", out, "--count", 1, "--steps", 1, "--out", drawn, *base)
    assert (drawn / "a-bear-bear-0.png").is_file()


def test_large_changes_are_cut_to_low_rank_with_the_error_shown_unless_told_otherwise(
    arguments: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bear.safetensors"
    run(*arguments)
    dense = Concept.load(file)
    assert {change.rank for change in dense.deltas.values()} == {None}
    monkeypatch.setattr("moongate.cli.train.LARGE", 1000)
    capsys.readouterr()
    run(*arguments, "--overwrite")
    small = Concept.load(file)
    assert all(change.rank for change in small.deltas.values())
    said = " ".join(capsys.readouterr().out.split())
    missed = sum(
        float((change.full() - dense.deltas[name].full()).square().sum()) for name, change in small.deltas.items()
    )
    total = sum(float(change.full().square().sum()) for change in dense.deltas.values())
    assert f"{(missed / total) ** 0.5:.1%} of the change was cut away" in said
    run(*arguments, "--overwrite", "--energy", 1)
    assert Concept.load(file).hash == dense.hash
    run(*arguments, "--overwrite", "--energy", 0.3)
    assert Concept.load(file).record["energy"] == 0.3
    assert "energy is 2.0; it must be above 0" in fails(capsys, *arguments, "--overwrite", "--energy", 2)


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """Twelve captioned pictures, four of them of dogs."""
    folder = tmp_path / "captioned"
    write_pictures(folder, count=12, seed=3)
    for index in range(12):
        caption = f"photo of a {('dog', 'cat', 'chair')[index % 3]} {('on', 'in', 'of', 'far')[index // 3]} the beach"
        (folder / f"{index}.txt").write_text(caption)
    return folder


@pytest.fixture
def collection(captioned: Path, tiny_folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "collection"
    run("retrieve", "index", captioned, "--model", tiny_folder, "--out", out, "--device", "cpu")
    return out


def test_retrieve_writes_captioned_pictures_that_train_takes(
    collection: Path, arguments: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reg"
    command = ["retrieve", "photo of a dog on the beach", "--from", collection, "--out", out, "--device", "cpu"]
    run(*command, "--count", 5, "--threshold", -1, "--side", 64)
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert rows[0]["caption"] == "photo of a dog on the beach"
    assert rows[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert len(rows) == 5
    assert read_picture(out / rows[0]["file_name"]).shape == (64, 80, 3)
    assert "Retrieved 5 pictures with similarities from 1.000 to" in capsys.readouterr().out
    assert "exists already" in fails(capsys, *command)
    (out / "0000.png").unlink()
    run(*command, "--count", 5, "--threshold", -1, "--side", 64, "--overwrite")
    assert (out / "0000.png").is_file()  # asked for again, it is fetched again
    at = arguments.index("--regularization") + 1
    run(*arguments[:at], out, *arguments[at + 1 :])


def test_retrieve_refuses_before_it_replaces_or_loads(
    captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["retrieve", "photo of a dog", "--from", tmp_path / "nowhere", "--out"]
    assert "has no retrieval.json" in fails(capsys, *command, captioned, "--overwrite")
    assert (captioned / "0.png").is_file()
    assert "There is no collection in" in fails(capsys, *command, tmp_path / "reg")
    assert "count is 0" in fails(capsys, *command, tmp_path / "reg", "--count", 0)
    assert "no features of pictures" in fails(capsys, *command, tmp_path / "reg", "--from", "pool", "--by", "pictures")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.usefixtures("clip")
def test_a_collection_was_lost_with_the_folder_of_its_clip_model(
    captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, moved = tmp_path / "collection", tmp_path / "moved"
    monkeypatch.chdir(tmp_path)
    run("retrieve", "index", captioned, "--encoder", "clip", "--out", place, "--device", "cpu")
    command = ["retrieve", "photo of a dog", "--from", place, "--threshold", -1, "--count", 1, "--device", "cpu"]
    monkeypatch.chdir(captioned)
    run(*command, "--out", tmp_path / "here")
    (tmp_path / "clip").rename(moved)
    assert f"made with {tmp_path / 'clip'}; say where" in fails(capsys, *command, "--out", tmp_path / "gone")
    run(*command, "--out", tmp_path / "there", "--encoder", moved)


@pytest.mark.usefixtures("clip")
def test_pictures_were_held_to_the_threshold_of_captions(captioned: Path, tmp_path: Path) -> None:
    place = tmp_path / "collection"
    run("retrieve", "index", captioned, "--encoder", tmp_path / "clip", "--pictures", "--out", place, "--device", "cpu")
    command = ["retrieve", "photo of a dog", "--from", place, "--count", 2, "--device", "cpu"]
    run(*command, "--by", "pictures", "--out", tmp_path / "reg")
    assert json.loads((tmp_path / "reg" / "retrieval.json").read_text())["threshold"] == -1


def test_what_is_said_of_retrieval_was_ignored_where_nothing_is_retrieved(
    collection: Path, arguments: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    at = arguments.index("--regularization") + 1
    assert f"--collection {collection} would be ignored" in fails(capsys, *arguments, "--collection", collection)
    none = [*arguments[:at], "none", *arguments[at + 1 :]]
    assert "--threshold 0.5 would be ignored" in fails(capsys, *none, "--threshold", 0.5)
    inverted = [*arguments[:at], "auto", *arguments[at + 1 :], "--method", "textual-inversion"]
    assert f"--collection {collection} would be ignored" in fails(capsys, *inverted, "--collection", collection)


def test_train_retrieves_in_passing_and_once(
    collection: Path, arguments: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = arguments.index("--regularization") + 1
    auto = [*arguments[:at], "auto", *arguments[at + 1 :], "--collection", collection, "--threshold", -1]
    run(*auto, "--regularization-count", 4)
    folder = tmp_path / "bear.run" / "regularization" / "teddy-bear" / "retrieved"
    facts = json.loads((folder / "retrieval.json").read_text())
    assert facts["query"] == "photo of a teddy bear"
    assert facts["found"] == 4
    config = json.loads((tmp_path / "bear.run" / "config.json").read_text())
    assert config["regularization"][0]["pictures"] == 4
    before = (folder / "0000.png").stat().st_mtime_ns
    run(*auto, "--regularization-count", 4, "--overwrite")
    assert (folder / "0000.png").stat().st_mtime_ns == before
    assert "No caption reaches the similarity 1.0" in fails(capsys, *auto, "--threshold", 1, "--overwrite")


def test_a_collection_of_another_model_is_refused_by_train(
    collection: Path, arguments: list[object], other_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = arguments.index("--model") + 1
    other = [*arguments[:at], other_folder, *arguments[at + 1 :]]
    at = arguments.index("--regularization") + 1
    message = fails(capsys, *other[:at], "retrieved", *other[at + 1 :], "--collection", collection)
    assert "was made with the text encoder" in message
    assert f"not with '{other_folder}'" in message


def test_regularization_none_trains_without(arguments: list[object], tmp_path: Path) -> None:
    at = arguments.index("--regularization") + 1
    run(*arguments[:at], "none", *arguments[at + 1 :])
    assert Concept.load(tmp_path / "bear.safetensors").method == "custom-diffusion-without-regularization"


def test_train_points_out_poor_pictures_and_keeps_some_out(
    arguments: list[object], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(pictures / "0.png", pictures / "1a.png")
    run(*arguments, "--holdout", 1)
    assert "warning: 1a.png shows the same as 0.png" in capsys.readouterr().out
    assert Concept.load(tmp_path / "bear.safetensors").record["held_out"] == ["2.png"]


def test_tokens_suggest_lists_rare_words(
    captioned: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tokens", "suggest", captioned, "--model", tiny_folder, "--device", "cpu"]
    run(*command, "--occurrences", 3, 5)
    out = capsys.readouterr().out
    assert all(word in out for word in ("dog", "cat", "chair"))
    assert "photo" not in out
    assert "No alphabetic token" in fails(capsys, *command, "--occurrences", 100, 200)


@pytest.mark.parametrize("method", ["dreambooth", "fine-tune-all", "textual-inversion"])
def test_the_baselines_train_by_name(
    arguments: list[object], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    file = tmp_path / "bear.safetensors"
    run(*arguments, "--method", method, "--steps", 1, "--batch", 1)
    concept = Concept.load(file)
    assert concept.method == method
    kinds = {tuple(change.full().shape[2:]) for change in concept.deltas.values()}
    assert kinds == (set() if method == "textual-inversion" else {(), (1, 1), (3, 3)})
    said = " ".join(capsys.readouterr().out.split())
    assert ("photo of a <bear> on the beach" in said) == (method == "textual-inversion")
    run("generate", "a <bear>", "--concept", file, "--count", 1, "--steps", 1, "--out", tmp_path / "drawn")


def test_a_method_that_wants_its_regularization_generated_gets_it_so(
    arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw(_backbone: object, _category: str, folder: Path, count: int, _console: object) -> None:
        drawn.append(count)
        write_pictures(folder, count=2, seed=0)

    monkeypatch.setattr("moongate.cli.regularization._draw", draw)
    (tmp_path / "bear.run" / "regularization").mkdir(parents=True)
    index = arguments.index("--regularization")
    alone = [*arguments[:index], *arguments[index + 2 :]]
    run(*alone, "--method", "dreambooth", "--steps", 1, "--batch", 1, "--regularization-count", 2)
    assert drawn == [2]


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """A tiny CLIP of the real class, by the name that chooses it."""
    tokenizer = make_tokenizer()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    towers = {
        "text_config": text_config(tokenizer).to_dict(),
        "vision_config": {**vision, "image_size": 32, "patch_size": 16},
    }
    CLIPModel(CLIPConfig(**towers, projection_dim=12)).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    return f"clip:{tmp_path / 'clip'}"


def test_evaluate_writes_a_record_and_draws_nothing_twice(
    concept: Path, pictures: Path, regularization: Path, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, prompts = tmp_path / "evaluation", tmp_path / "prompts.txt"
    prompts.write_text("photo of a {}\na red {}\n")
    command = ["evaluate", concept, "--prompts", prompts, "--count", 1, "--steps", 1, "--features", clip, "--out", out]
    command += ["--training-pictures", pictures, "--reference", regularization, "--device", "cpu"]
    run(*command)
    record = json.loads((out / "record.json").read_text())
    measures = [row["measure"] for row in record["measures"]]
    assert measures == ["text alignment", "image alignment", "KID", "FID"]
    assert {row["features"] for row in record["measures"]} == {clip}
    assert record["files"] == [{"name": str(concept), "hash": Concept.load(concept).hash}]
    assert [row.get("pictures") for row in record["measures"]] == [None, "training", None, None]
    shown = capsys.readouterr().out
    assert "training" in shown
    assert f"{record['measures'][1]['value']:.4f}" in shown
    drawn = {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    assert len(drawn) == 2 + 4
    run(*command)
    assert {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()} == drawn
    assert json.loads((out / "record.json").read_text()) == record


def test_evaluate_takes_two_concepts_of_any_format_and_pairs_of_things(
    concept: Path, clip: str, tmp_path: Path
) -> None:
    other = Concept.load(concept).renamed({"<bear>": "<other>"}).save(tmp_path / "other.safetensors")
    out, prompts = tmp_path / "evaluation", tmp_path / "prompts.txt"
    prompts.write_text("a {0} and a {1}\n")
    rest = ["--prompts", prompts, "--count", 1, "--steps", 1, "--features", clip, "--out", out, "--device", "cpu"]
    run("convert", other, "--to", "lora", "--rank", 16, "--out", tmp_path / "lora")
    run("evaluate", concept, tmp_path / "lora", *rest)
    record = json.loads((out / "record.json").read_text())
    assert record["prompts"][0]["drawn"] == "a <bear> teddy bear and a <other> teddy bear"
    assert record["prompts"][0]["read"] == "a teddy bear and a teddy bear"
    assert len(record["files"]) == 2


def test_evaluate_refuses_before_it_draws(
    concept: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["evaluate", concept, "--out", tmp_path / "evaluation", "--device", "cpu"]
    assert "neither a set of prompts" in fails(capsys, *base, "--prompts", "nowhere")
    assert "2 folders of held out pictures were given for 1 things" in fails(
        capsys, *base, "--pictures", pictures, pictures
    )
    assert "Unknown features 'vgg'" in fails(capsys, *base, "--features", "vgg")
    assert "Without a concept" in fails(capsys, "evaluate", "--out", tmp_path / "evaluation")
    assert not (tmp_path / "evaluation").exists()


def test_analyze_writes_tables_and_pages(
    concept: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "analysis"
    for what in ("weights", "spectrum", "attention"):
        run("analyze", what, concept, "--steps", 1, "--out", out, "--device", "cpu")
        assert f"{what}.html" in capsys.readouterr().out
        assert "<h1>" in (out / f"{what}.html").read_text()
    kinds = [change["kind"] for change in json.loads((out / "weights.json").read_text())]
    assert kinds == ["cross-attention", "self-attention", "the rest"]
    assert len(json.loads((out / "spectrum.json").read_text())) == 14
    words = json.loads((out / "attention.json").read_text())[0]["words"]
    assert [word["word"] for word in words] == ["photo", "of", "a", "<bear>", "teddy", "bear"]
    with Image.open(out / "attention.png") as sheet:
        assert sheet.width > 7 * 64
    run("analyze", "attention", "--model", tiny_folder, "--prompt", "a dog", "--steps", 1, "--out", out)
    assert "neither a concept file nor a --prompt" in fails(capsys, "analyze", "attention")
    assert "no concept file to find the spectrum of" in fails(capsys, "analyze", "spectrum")


def test_text_files_in_another_encoding_are_named(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes("a café".encode("latin-1"))
    told = "text.txt is no text in UTF-8"
    assert told in fails(capsys, "merge", concept, "--captions", text, "--out", tmp_path / "out.safetensors")
    assert told in fails(capsys, "generate", "--prompts-file", text, "--concept", concept)


def test_a_full_disk_while_drawing_is_told_without_a_traceback(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a-dog-0.png"))

    monkeypatch.setattr("moongate.cli.generate._save_png", full)
    command = ["generate", "a dog", "--model", tiny_folder, "--count", 1, "--steps", 1, "--out", tmp_path / "drawn"]
    message = fails(capsys, *command)
    assert "a-dog-0.png: No space left on device. Free some space" in message


def test_a_report_that_cannot_be_written_is_told_before_the_merge(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert "is a file" in fails(capsys, "merge", concept, "--out", out, "--report", concept)
    assert not out.exists()
