import json
import shutil
from pathlib import Path

from moongate import pocket


def test_the_digest_counts_weights_and_measured_settings_and_no_defaults(tmp_path: Path) -> None:
    folder = shutil.copytree(pocket.weights_folder(), tmp_path / "weights")
    digest = pocket.weights_digest(folder)
    assert digest == pocket.weights_digest()
    settings = json.loads((folder / "moongate.json").read_text())

    def changed(**values: object) -> str:
        (folder / "moongate.json").write_text(json.dumps(settings | values))
        return pocket.weights_digest(folder)

    assert changed(guidance=3.0, method="dreambooth") == digest
    assert changed(lr_scale=1.0) != digest
    assert changed() == digest
    (folder / "model_index.json").write_text("{}")
    assert pocket.weights_digest(folder) != digest
