import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import command, fails, run
from making import invented
from moongate.backbone import Backbone, Fingerprint
from moongate.cli import generate
from moongate.concept import Concept


def test_generate_writes_pictures_that_record_how_they_were_made(bear: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    (tmp_path / "more.txt").write_text("a dog\n\na red chair\n")
    draw = command("generate", "photo of a <bear> teddy bear", prompts_file=tmp_path / "more.txt", concept=bear)
    run(draw.but(count=2, seed=5, steps=2, out=out, device="cpu"))
    names = {path.name for path in out.iterdir()}
    assert names == {
        *(f"{stem}-{seed}.png" for stem in ("photo-of-a-bear-teddy-bear", "a-dog", "a-red-chair") for seed in (5, 6)),
        "contact-sheet.png",
    }
    with Image.open(out / "photo-of-a-bear-teddy-bear-6.png") as picture:
        text = picture.text
    assert text["parameters"].startswith("photo of a <bear> teddy bear\nSteps: 2, Sampler: DDPM, CFG scale: 6")
    assert "prompt" not in text
    record = json.loads(text["moongate"])
    assert (record["prompt"], record["seed"]) == ("photo of a <bear> teddy bear", 6)
    assert record["concepts"] == [{"file": bear.name, "hash": Concept.load(bear).hash, "strength": 1.0}]
    assert record["steps"] == 2


def test_generate_draws_with_the_models_own_guidance_unless_another_is_given(tiny_folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    draw = command("generate", "a dog", count=1, steps=1, device="cpu", model=model)
    guidances = []
    run(draw.but(out=tmp_path / "papers"))
    (model / "moongate.json").write_text('{"guidance": 2}')
    run(draw.but(out=tmp_path / "own"))
    run(draw.but(out=tmp_path / "chosen", guidance=1.5))
    for name in ("papers", "own", "chosen"):
        with Image.open(tmp_path / name / "a-dog-0.png") as picture:
            guidances.append(json.loads(picture.text["moongate"])["guidance"])
    assert guidances == [6, 2, 1.5]


def test_a_concept_at_strength_zero_draws_what_the_base_draws(bear: Path, tiny_folder: Path, tmp_path: Path) -> None:
    draw = command("generate", "a dog", count=1, steps=2, device="cpu")
    run(draw.but(model=tiny_folder, out=tmp_path / "base"))
    run(draw.but(concept=f"{bear}:0", out=tmp_path / "zero"))
    run(draw.but(concept=bear, out=tmp_path / "one"))
    pictures = []
    for name in ("base", "zero", "one"):
        with Image.open(tmp_path / name / "a-dog-0.png") as picture:
            pictures.append(picture.tobytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_subjects_of_one_picture_are_kept_in_their_regions(
    bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = command("generate", "a <bear> teddy bear and a dog", concept=bear, count=1, steps=2, device="cpu")
    (tmp_path / "regions.yaml").write_text('"<bear>": [0, 0, 0.5, 1]\ndog: [0.5, 0, 1, 1]\n')
    run(draw.but(out=tmp_path / "plain"))
    run(draw.but(out=tmp_path / "options", region=("<bear>=0,0,0.5,1", "dog=0.5,0,1,1")))
    run(draw.but(out=tmp_path / "file", regions=tmp_path / "regions.yaml"))
    pictures, records = [], []
    for name in ("plain", "options", "file"):
        with Image.open(tmp_path / name / "a-bear-teddy-bear-and-a-dog-0.png") as picture:
            pictures.append(picture.tobytes())
            records.append(json.loads(picture.info["moongate"]).get("regions"))
    assert pictures[0] != pictures[1] == pictures[2]
    words = ["<bear>", "dog"]
    assert records[0] is None
    assert [region["words"].split()[0] for region in records[1]] == words
    assert records[1] == records[2]
    assert "--compare draws without regions" in fails(capsys, draw.but(compare=True, region="dog=0,0,0.5,1"))


def test_bad_input_to_generate_is_named(
    bear: Path, tiny_folder: Path, other_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "drawn"
    draw = command("generate", "a dog", model=tiny_folder, out=out, device="cpu", steps=1)
    promptless = command("generate", model=tiny_folder, out=out)
    assert "There is no prompt" in fails(capsys, promptless)
    assert "no file of prompts" in fails(capsys, promptless.but(prompts_file=tmp_path / "nowhere"))
    assert "count is 0" in fails(capsys, draw.but(count=0))
    unknown = draw.without("model").but("a <cat> dog", concept=bear)
    assert "unknown token '<cat>'. Known tokens: <bear>" in fails(capsys, unknown)
    assert "There is no concept file" in fails(capsys, draw.but(concept=tmp_path / "nowhere"))
    torch.save({}, tmp_path / "old.bin")
    assert "is of no format that Moongate reads" in fails(capsys, draw.but(concept=tmp_path / "old.bin"))
    assert "was made for another model than" in fails(capsys, draw.but(model=other_folder, concept=bear))
    assert "steps is 1001" in fails(capsys, draw.but(steps=1001))
    assert "The seed 99999999999999999999 is out of range" in fails(capsys, draw.but(seed=99999999999999999999))
    assert "more than 8 times that of the model's pictures, 64 px" in fails(capsys, draw.but(width=8192))
    unloaded = draw.but(width=100_000, model="no-model")
    assert "A side of 100000 px cannot be drawn; it is at most 8192 px" in fails(capsys, unloaded)
    assert "made for another kind of model" in fails(capsys, draw.but(scheduler="FlowMatchEulerDiscreteScheduler"))
    assert "guidance is 1000000000.0; it must be in 0..100" in fails(capsys, draw.but(guidance=1e9))
    assert not out.exists()
    (tmp_path / "file").touch()
    assert "file is a file. Give the name of a folder" in fails(capsys, draw.but(out=tmp_path / "file"))
    assert "is not a folder that you may write into" in fails(capsys, draw.but(out=tmp_path / "file" / "in"))
    foreign = draw.but(concept=bear, model=other_folder)
    assert f"Name its own: --model {tiny_folder}" in fails(capsys, foreign)
    misplaced = fails(capsys, draw.but(model=bear))
    assert "bear.safetensors is a concept, not a model; draw with it: moongate generate" in misplaced
    assert "is a model, not a concept; draw with it: moongate generate" in fails(capsys, draw.but(concept=tiny_folder))


def test_generate_takes_free_names_and_replaces_only_what_may_be(tiny_folder: Path, tmp_path: Path) -> None:
    draw = command("generate", "a dog", model=tiny_folder, count=1, steps=1, out=tmp_path, device="cpu")
    run(draw)
    first = (tmp_path / "a-dog-0.png").read_bytes()
    run(draw.but("a dog", "a <dog", "a cat", steps=2))
    names = {path.name for path in tmp_path.glob("*.png")}
    pictures = {"a-dog-0.png", "a-dog-0-2.png", "a-dog-2-0.png", "a-cat-0.png"}
    assert names == {*pictures, "contact-sheet.png", "contact-sheet-2.png"}
    assert (tmp_path / "a-dog-0.png").read_bytes() == first
    run(draw.but(steps=2, overwrite=True))
    assert {path.name for path in tmp_path.glob("*.png")} == names
    assert (tmp_path / "a-dog-0.png").read_bytes() == (tmp_path / "a-dog-0-2.png").read_bytes() != first


def test_a_contact_sheet_of_many_pictures_shows_them_small_and_leaves_the_last_out(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = command("generate", "a dog", "a cat", model=tiny_folder, count=2, steps=1, device="cpu")
    run(draw.but(out=tmp_path / "large"))
    monkeypatch.setattr(generate, "SHEET_PIXELS", 3 * 32 * 32)
    monkeypatch.setattr(generate, "SHEET_PICTURES", 3)
    run(draw.but(out=tmp_path / "small"))
    assert "Wrote 4 pictures and contact-sheet.png, which shows the first 3, to" in capsys.readouterr().out
    widths = []
    for name in ("large", "small"):
        with Image.open(tmp_path / name / "contact-sheet.png") as sheet:
            widths.append(sheet.width)
        with Image.open(tmp_path / name / "a-dog-0.png") as picture:
            assert picture.size == (64, 64)
    assert widths == [2 * 64 + 3 * 4, 2 * 32 + 3 * 4]


def test_a_comparison_of_too_many_pictures_is_refused_before_a_model_is_loaded(
    bear: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = command("generate", "a dog", "a cat", concept=bear, compare=True, count=100, model="no-model")
    assert "--compare would put 1200 pictures on one sheet, which holds at most 1000" in fails(capsys, many)


def test_any_number_of_prompts_gets_names_within_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"a dog {number}" for number in range(30_000)] + ["a dog!", "a dog?", "a dog"]
    names = generate.Generate(prompts=tuple(prompts), count=1)._names(prompts)
    assert len(set(names)) == len(prompts)
    assert names[-3:] == ["a-dog-0.png", "a-dog-30000-0.png", "a-dog-30001-0.png"]


def test_prompts_that_are_alike_where_names_end_are_all_drawn(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a very small and rather old dog of wood and of stone in the snow next to a garden " * 2
    draw = command("generate", long + "at night", long + "by day", "a dog", "a dog", model=tiny_folder)
    run(draw.but(count=1, steps=1, out=tmp_path, device="cpu", json=True))
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert [picture["prompt"] for picture in report["pictures"]] == [long + "at night", long + "by day", "a dog"]
    assert all(Path(picture["file"]).is_file() for picture in report["pictures"])
    assert "The prompt 'a dog' was given 2 times; it is drawn once" in printed.err


def test_a_concept_can_be_given_several_times_and_before_the_prompt(
    bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Concept.load(bear).renamed({"<bear>": "<other>"}).save(tmp_path / "other.safetensors")
    draw = ["--together", "add", "--count", 1, "--steps", 1, "--device", "cpu", "--out", tmp_path / "drawn", "--json"]
    told = []
    for words in (
        ["a <bear>", "--concept", bear, "--concept", f"{other}:0.5"],
        ["a <bear>", "--concept", bear, f"{other}:0.5"],
        [*draw, "--concept", bear, f"{other}:0.5", "a <bear>"],
        [*draw, "--concept", bear, "--concept", f"{other}:0.5", "a <bear>"],
    ):
        capsys.readouterr()
        run("generate", *words, *([] if draw[0] in words else draw))
        told.append(json.loads(capsys.readouterr().out))
    assert [concept["strength"] for concept in told[0]["concepts"]] == [1.0, 0.5]
    for report in told:
        assert [picture["prompt"] for picture in report["pictures"]] == ["a <bear>"]
        assert report["concepts"] == told[0]["concepts"]
    message = fails(capsys, "generate", "a <bear>", "--concept", bear, "nowhere.safetensors")
    assert "There is no concept file nowhere.safetensors" in message


def test_a_token_without_its_brackets_is_named(bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = command("generate", "a bear", concept=bear, count=1, steps=1, device="cpu", out=tmp_path / "drawn")
    run(draw)
    assert "lacks the brackets of the token <bear>" in capsys.readouterr().err
    run(draw.but("a <BEAR>"))
    assert "lacks" not in capsys.readouterr().err


def test_prompts_in_another_encoding_are_named(bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes("a café".encode("latin-1"))
    message = fails(capsys, command("generate", prompts_file=text, concept=bear))
    assert "text.txt cannot be read: it is not text in UTF-8" in message


def test_concepts_loaded_together_are_merged_added_or_refused(
    bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Concept.load(bear).renamed({"<bear>": "<other>"}).save(tmp_path / "other.safetensors")
    draw = command("generate", "a <bear> and a <other>", concept=(bear, other), count=1, steps=2, device="cpu")
    run(draw.but(out=tmp_path / "merged"))
    assert "Neutral captions drift" in capsys.readouterr().out
    run(draw.but(out=tmp_path / "added", together="add"))
    pictures = [next((tmp_path / name).glob("a-*.png")) for name in ("merged", "added")]
    assert len({Image.open(path).tobytes() for path in pictures}) == 2
    assert "--together refuse" in fails(capsys, draw.but(together="refuse", out=tmp_path / "no"))
    spoilt = command("generate", "a dog", concept=f"{bear}:nan", out=tmp_path / "no")
    assert "bear.safetensors is nan. Give a number" in fails(capsys, spoilt)


def test_a_library_gives_the_concepts_that_prompts_name_and_keeps_their_merge(
    bear: Path, tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "library"
    invented(tiny, ("<rex>", "dog")).save(library / "dog.safetensors")
    bear.rename(library / "bear.safetensors")
    (library / "broken.safetensors").write_bytes(b"no concept")
    draw = command("generate", "a <rex> dog", library=library, count=1, steps=1, device="cpu")
    run(draw.but(out=tmp_path / "one"))
    assert "broken.safetensors is skipped" in capsys.readouterr().err
    (library / "broken.safetensors").unlink()
    both = "a <rex> dog and a <bear> teddy bear"
    run(draw.but(both, out=tmp_path / "merged"))
    (kept,) = (tmp_path / "cache" / "moongate" / "library").iterdir()
    assert list(Concept.load(kept).tokens) == ["<bear>", "<rex>"]
    run(draw.but(both, out=tmp_path / "kept"))
    pictures = [np.array(Image.open(next((tmp_path / name).glob("a-*.png")))) for name in ("merged", "kept")]
    assert np.array_equal(*pictures)
    records = [Image.open(next((tmp_path / name).glob("a-*.png"))).text["moongate"] for name in ("merged", "kept")]
    assert records[0] == records[1]  # the files are named, not the one in the cache
    draw = draw.but(model=tmp_path / "no-model")  # what is wrong with the prompt is said before a model is looked for
    assert "<tom> in" in fails(capsys, draw.but("a <tom> cat"))
    assert "either --concept or --library" in fails(capsys, draw.but(concept=kept))


def test_a_library_gives_what_the_negative_prompt_and_the_prompts_of_regions_name(
    bear: Path, tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library, regions = tmp_path / "library", tmp_path / "regions.yaml"
    for number, word in enumerate(("dog", "cat")):
        invented(tiny, (f"<{word}>", word), seed=number).save(library / f"{word}.safetensors")
    bear.rename(library / "bear.safetensors")
    regions.write_text('"teddy bear":\n  box: [0, 0, 0.5, 1]\n  prompt: a <cat> cat\n')
    draw = command("generate", "a <bear> teddy bear", library=library, regions=regions, count=1, steps=1, json=True)
    run(draw.but(negative_prompt="a <dog> dog", out=tmp_path / "drawn", device="cpu"))
    names = [concept["file"] for concept in json.loads(capsys.readouterr().out)["concepts"]]
    assert names == ["bear.safetensors", "cat.safetensors", "dog.safetensors"]


def test_a_merge_that_was_kept_for_one_model_is_not_drawn_with_another(
    tiny: Backbone, tiny_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    """Also where no concept says which model it is for."""
    for number, word in enumerate(("bear", "dog")):
        concept = replace(invented(tiny, (f"<{word}>", word), seed=number), base="", fingerprint=Fingerprint.unknown())
        concept.save(tmp_path / "library" / f"{word}.safetensors")
    draw = command("generate", "a <bear> bear and a <dog> dog", library=tmp_path / "library", count=1, steps=1)
    for model in (tiny_folder, other_folder):
        run(draw.but(model=model, out=tmp_path / "drawn", device="cpu"))
    kept = [Concept.load(path) for path in (tmp_path / "cache" / "moongate" / "library").iterdir()]
    assert {concept.base for concept in kept} == {str(tiny_folder), str(other_folder)}


def test_compare_writes_one_sheet_with_and_without_the_concept(
    bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = command("generate", "a <bear> teddy bear", concept=bear, compare=True, count=2, steps=1, device="cpu")
    draw = draw.but(out=tmp_path / "compared", json=True)
    run(draw)
    found = json.loads(capsys.readouterr().out)
    assert found["strengths"] == [0.0, 0.4, 0.6, 0.8, 1.0, 1.2]
    assert [path.name for path in (tmp_path / "compared").iterdir()] == ["comparison.png"]
    with Image.open(found["sheet"]) as sheet:
        assert sheet.width == 6 * (64 + 4) + 4
    assert "--compare needs one concept" in fails(capsys, draw.without("concept"))


def test_an_empty_prompt_is_refused_and_single_words_are_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = command("generate", model="nothing", out=tmp_path)
    assert "A prompt is empty. Say what to draw" in fails(capsys, generate.but("a dog", " "))
    asked = "Each of the words a, dog, outside is drawn as a prompt of its own. If they are one, put quotation marks"
    assert asked in fails(capsys, generate.but("a", "dog", "outside"))
    assert "of its own" not in fails(capsys, generate.but("a dog", "outside"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 10**9}, "count is 1000000000; it is at most 1000000."),
        ({"width": 0}, "width_px is 0; it must be at least 1."),
        ({"height": -8}, "height_px is -8; it must be at least 1."),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_at_once(
    options: dict[str, int], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, command("generate", "a dog", model="nothing", **options))


def test_a_library_is_drawn_where_its_merge_cannot_be_kept_or_was_damaged(
    tiny: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    for number, word in enumerate(("bear", "dog")):
        invented(tiny, (f"<{word}>", word), seed=number).save(tmp_path / "library" / f"{word}.safetensors")
    draw = command("generate", "a <bear> bear and a <dog> dog", library=tmp_path / "library", count=1, steps=1)
    draw = draw.but(model=tiny_folder, device="cpu", out=tmp_path / "drawn")
    cache = tmp_path / "cache" / "moongate" / "library"
    cache.parent.mkdir(parents=True)
    cache.touch()  # a file, so that no folder can be made there
    run(draw)
    cache.unlink()
    run(draw)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-9])
    run(draw)
    assert kept.read_bytes() == whole
