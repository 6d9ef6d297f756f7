import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from moongate.analysis import KindOfChange, Spectrum, WordMaps
from moongate.analysis.page import (
    SPECTRUM_HEAD,
    WEIGHTS_HEAD,
    spectrum_rows,
    weights_rows,
    write_attention,
    write_spectra,
    write_weights,
)
from moongate.sampling import Sample

CHANGES = [
    KindOfChange(kind="cross-attention", mean=0.02, layers=2, changed=1, share=0.1, by_layer={"a.to_k": 0.04}),
    KindOfChange(kind="the rest", mean=0.0, layers=3, changed=0, share=0.9, by_layer={}),
]


def test_changes_of_weights_are_written_as_json_a_table_and_a_chart(tmp_path: Path) -> None:
    page = write_weights(CHANGES, tmp_path).read_text()
    kind, rest = json.loads((tmp_path / "weights.json").read_text())
    assert kind["by_layer"] == {"a.to_k": 0.04}
    assert rest["share"] == 0.9
    assert [len(row) for row in weights_rows(CHANGES)] == [len(WEIGHTS_HEAD)] * 2
    assert page.count('class="bar"') == 2
    assert "<td>4.000%</td>" in page


def test_a_change_larger_than_the_weights_of_a_layer_is_explained(tmp_path: Path) -> None:
    large = dataclasses.replace(CHANGES[0], mean=0.5, by_layer={"a.to_k": 1.6})
    assert "A change of more than 100% is usual after a merge." in write_weights([large], tmp_path).read_text()
    assert "more than 100%" not in write_weights(CHANGES, tmp_path).read_text()


def test_spectra_are_written_as_json_a_table_and_a_line_for_each(tmp_path: Path) -> None:
    spectra = {
        "a": Spectrum(values=torch.tensor([4.0, 3, 2, 1], dtype=torch.float64)),
        "b": Spectrum(values=torch.tensor([1.0, 0.5], dtype=torch.float64)),
    }
    page = write_spectra(spectra, tmp_path).read_text()
    assert json.loads((tmp_path / "spectrum.json").read_text()) == {"a": [4, 3, 2, 1], "b": [1, 0.5]}
    assert spectrum_rows(spectra) == [("a", "4", "2", "4", "4"), ("b", "1", "1", "2", "2")]
    assert len(SPECTRUM_HEAD) == 5
    assert page.count("<polyline") == 2 * len(("legend", "line", "sparkline"))


def test_the_chart_of_spectra_ends_where_all_values_are_next_to_nothing(tmp_path: Path) -> None:
    low_rank = torch.cat([torch.linspace(1, 0.5, 10), torch.zeros(500)]).double()
    page = write_spectra({"a": Spectrum(values=low_rank)}, tmp_path).read_text()
    axis = [float(text) for text in re.findall(r"<text[^>]*>([\d.]+)</text>", page)]
    assert max(axis) <= 12
    assert len(json.loads((tmp_path / "spectrum.json").read_text())["a"]) == 510


def test_attention_is_red_where_it_is_high_and_function_words_come_last(tmp_path: Path) -> None:
    picture = Sample(image=np.full((16, 16, 3), 200, dtype=np.uint8), prompt="a <bear>", seed=7)
    left = np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    page = write_attention([WordMaps(picture=picture, words=(("a", left), ("<bear>", 1 - left)))], tmp_path).read_text()
    assert "a &lt;bear&gt;, seed 7" in page
    assert re.findall(r'alt="([^"]*)"', page) == ["picture", "&lt;bear&gt;", "a"]
    assert json.loads((tmp_path / "attention.json").read_text())[0]["words"][0] == {"word": "a", "map": left.tolist()}
    sheet = np.array(Image.open(tmp_path / "attention.png")).astype(int)
    (rows,) = np.nonzero((sheet[:, 4:20] == 200).all((1, 2)))
    for first, (hot, cold) in ((4 + 20, (15, 0)), (4 + 40, (0, 15))):
        red, gray = sheet[rows[8], first + hot], sheet[rows[8], first + cold]
        assert red[0] > red[1] + 100
        assert np.ptp(gray) == 0
