"""What the README and the documentation show must work as it is written."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import pytest

import moongate
from making import invented
from moongate import cli, errors
from moongate.backbone import Backbone
from moongate.cli.jobs import FleetJob, read_entries
from moongate.cli.subjects import subjects_from_file
from moongate.concept import Concept
from moongate.merging.neutral import neutral_captions

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
README = PAGES["README.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks(README, "python")
    assert "steps=150" in example
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("steps=150", "steps=2"), "README.md", "exec"), {})
    assert Concept.load("bear.safetensors").subjects[0].token == "<bear>"
    assert (tmp_path / "bears.png").stat().st_size > 10_000


def test_the_example_of_the_api_reference_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer neutral captions and drawing steps, which take most of the time."""
    (example,) = blocks(PAGES["docs/api/index.md"], "python")
    assert "seeds=[0]" in example
    example = example.replace("seeds=[0]", "seeds=[0], options=moongate.SampleOptions(steps=2)")
    (tmp_path / "few.txt").write_text("\n".join(neutral_captions()[:50]))
    monkeypatch.setattr("moongate.merging.neutral.CAPTIONS_FILE", tmp_path / "few.txt")
    monkeypatch.chdir(tmp_path)
    pocket = Backbone.load("pocket", device="cpu")
    invented(pocket, ("<bear>", "teddy bear")).save("bear.safetensors")
    invented(pocket, ("<chair>", "armchair"), seed=1).save("chair.safetensors")
    exec(compile(example, "docs/api/index.md", "exec"), {})
    assert Concept.load("both.safetensors").subjects[1].token == "<chair>"
    assert (tmp_path / "both-lora" / "pytorch_lora_weights.safetensors").is_file()


def test_every_public_name_is_in_the_api_reference() -> None:
    described = {name for page in PAGES.values() for name in re.findall(r"^::: (\S+)", page, flags=re.MULTILINE)}
    assert "moongate.errors" in described
    for name in described:
        assert resolve_name(name) is not None
    objects = [resolve_name(name) for name in described]
    names = [name for name in moongate.__all__ if not hasattr(errors, name)]
    assert [name for name in names if not any(getattr(moongate, name) is each for each in objects)] == []


@pytest.mark.parametrize("page", [name for name in PAGES if "moongate " in "".join(blocks(PAGES[name], "console"))])
def test_every_command_is_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for command in (getattr(cli, name) for name in cli.__all__ if name != "main"):
        monkeypatch.setattr(command, "__call__", lambda self, _console: called.append(self))
    lines = [line for block in blocks(PAGES[page], "console") for line in block.splitlines()]
    lines = [line for line in lines if line.startswith("moongate ")]
    for line in lines:
        cli.main(shlex.split(line)[1:])
    assert len(called) == len(lines)


def test_the_file_of_concepts_is_understood(tmp_path: Path) -> None:
    (example,) = blocks(PAGES["docs/howto/captions-and-masks.md"], "yaml")
    (tmp_path / "concepts.yaml").write_text(example)
    first, second = subjects_from_file(tmp_path / "concepts.yaml")
    assert [(each.token, each.category) for each in (first, second)] == [("<rex>", "dog"), ("<chair>", "armchair")]
    assert second.regularization == str(tmp_path / "other-chairs")


def test_the_file_of_jobs_is_understood(tmp_path: Path) -> None:
    (example,) = blocks(PAGES["docs/howto/fleet.md"], "yaml")
    (tmp_path / "jobs.yaml").write_text(example)
    for name in ("bear-photos", "chair-photos", "chair-others"):
        (tmp_path / name).mkdir()
    (tmp_path / "prompts.txt").write_text("photo of a {} and a {}\n")
    entries = read_entries(tmp_path / "jobs.yaml")
    first, second = (FleetJob.read(entry, folder=tmp_path, out=tmp_path / "concepts") for entry in entries)
    assert first.train is not None
    assert second.train is not None
    assert second.evaluate is not None
    assert [(each.token, each.category) for each in first.train.subjects] == [("<bear>", "teddy bear")]
    assert (second.train.method, second.train.seed, second.evaluate.count) == ("dreambooth", 1, 2)


def test_the_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.compile(r"(?:^|`)make (\w[\w-]*)", flags=re.MULTILINE)
    targets = {name for page in PAGES.values() for name in named.findall(page)}
    assert {"demo", "test"} <= targets
    assert [name for name in sorted(targets) if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE)] == []


def test_the_programs_of_the_checkout_are_named_as_they_can_be_run() -> None:
    """By its path, a program finds the others of its folder by their bare names; as a module, by their package's."""
    folders = ("benchmarks", "experiments", "recipe")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.[mp][dy]")]
    texts = [text for page, text in PAGES.items() if not page.startswith("docs/results")]
    text = "\n".join([*texts, *(path.read_text(encoding="utf-8") for path in files)])
    modules = set(re.findall(r"python\s+-m\s+((?:benchmarks|experiments|recipe)\.[.\w]*\b)", text))
    paths = set(re.findall(r"python\s+((?:benchmarks|experiments|recipe)/\S+?\.py)", text))
    assert {"experiments.regions", "recipe.report"} <= modules
    assert "benchmarks/memory.py" in paths
    assert [name for name in modules if find_spec(name) is None] == []
    bare = {path.stem for path in files}
    for program in [*modules, *paths]:
        source = (ROOT / (program if program in paths else program.replace(".", "/") + ".py")).read_text()
        imported = set(re.findall(r"^(?:from|import) (\w+)", source, flags=re.MULTILINE))
        assert not imported & (set(folders) if program in paths else bare - set(folders)), program


FURTHER = ("ARCHITECTURE", "CONTRIBUTING", "SECURITY", "CHANGELOG", "recipe/README", "experiments/README")


@pytest.mark.parametrize("page", [*PAGES, *(f"{name}.md" for name in FURTHER)])
def test_links_lead_to_files_and_their_headings(page: str) -> None:
    for link, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", (ROOT / page).read_text(encoding="utf-8")):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], heading


def test_each_key_of_a_models_settings_is_explained() -> None:
    settings = json.loads((ROOT / "src/moongate/pocket/weights/moongate.json").read_text())
    assert [key for key in settings if f"`{key}`" not in PAGES["docs/howto/pocket.md"]] == []


def test_each_function_that_the_method_page_names_exists() -> None:
    names = re.findall(r"`(moongate\.(?!json`)[\w.]+)`", PAGES["docs/method.md"])
    assert len(names) >= 10
    for name in names:
        assert resolve_name(name) is not None
