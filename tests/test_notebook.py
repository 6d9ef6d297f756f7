"""The notebook of the documentation must run from top to bottom."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "first-hour.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs_on_pocket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONGATE_STEPS", "2")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    shutil.copy(NOTEBOOK, tmp_path)
    notebook = nbformat.read(tmp_path / NOTEBOOK.name, as_version=4)
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "Finished after 2 steps" in (tmp_path / "home.run" / "index.html").read_text()
    assert len(list((tmp_path / "pictures").glob("*.png"))) >= 4
    assert {path.suffix for path in (tmp_path / "home-lora").iterdir()} >= {".safetensors"}


def test_the_notebook_is_kept_without_outputs_and_names_the_model_in_one_line() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    lines = [line for cell in code for line in cell.source.splitlines()]
    assert [line.split("  #")[0] for line in lines if line.startswith("MODEL")] == ['MODEL = "pocket"']


def test_the_notebook_installs_from_its_checkout_or_from_the_folder_that_its_text_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    text, code = (cell.source for cell in notebook.cells[:2])
    assert "`/content/moongate`" in text
    monkeypatch.delenv("MOONGATE_CHECKOUT", raising=False)
    for place, checkout in ((NOTEBOOK.parent, ".."), (tmp_path, "/content/moongate")):
        monkeypatch.chdir(place)
        names: dict[str, object] = {}
        exec(code, names)  # installs nothing, because Moongate is there
        assert names["CHECKOUT"] == checkout
