import json
from pathlib import Path
from typing import Any

import pytest

from making import make_concept
from moongate.backbone import Backbone
from moongate.concept import FORMAT, Concept
from moongate.errors import ConceptFileError
from moongate.interop import read
from moongate.limits import MAX_TOKENS
from moongate.provenance import free_rare_token
from moongate.tensor_files import read_tensors, safetensors_bytes

ODD: list[Any] = [
    None,
    True,
    5,
    -1,
    1.5,
    1e308,
    10**400,
    "x" * 100_000,
    [],
    [[]],
    {},
    {"a": []},
    ["{}" * 3],
    [["{}{}"]],
]
PLACES = [
    *(("base",), ("method",), ("record",), ("tokens",), ("token_widths",), ("subjects",), ("fingerprint",)),
    *(("subjects", 0), ("subjects", 0, "category"), ("subjects", 0, "token"), ("subjects", 0, "prompts")),
    *(("subjects", 0, "prompts", 0), ("fingerprint", "layout"), ("fingerprint", "norms"), ("fingerprint", "norms", 0)),
    *(("subjects", 0, "more_tokens"), ("record", "contexts"), ("record", "rare_token"), ("tokens", 0)),
    *(("record", "next_rare_token"), ("record", "rows")),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_an_odd_value_anywhere_in_a_header_is_an_error_that_names_the_file_or_is_used_as_it_is(
    place: tuple[str | int, ...], tiny: Backbone, tmp_path: Path
) -> None:
    path = make_concept(tiny).save(tmp_path / "bear.safetensors")
    tensors, header = read_tensors(path)
    for value in ODD:
        facts = json.loads(header["concept"])
        owner = facts
        for key in place[:-1]:
            owner = owner[key]
        owner[place[-1]] = value
        texts = {"format": FORMAT, "version": "1", "concept": json.dumps(facts)}
        path.write_bytes(safetensors_bytes(tensors, texts))
        for load in (Concept.load, lambda file: read(file).concept):
            try:
                concept = load(path)
            except ConceptFileError as error:
                assert path.name in str(error)  # noqa: PT017
            else:
                assert all(isinstance(subject.words, str) for subject in concept.subjects)
                assert free_rare_token(concept.record, len(concept.tokens)) >= 0
                assert len(concept.fingerprint.short) >= 7


@pytest.mark.parametrize("context", ["{:>999999999}", "{0.__class__}", "{}{}", "photo", "{a}"])
def test_a_context_that_is_no_caption_with_one_place_is_refused(context: str, tiny: Backbone, tmp_path: Path) -> None:
    path = make_concept(tiny).save(tmp_path / "bear.safetensors")
    tensors, header = read_tensors(path)
    facts = json.loads(header["concept"])
    facts["record"]["contexts"] = [[context]]
    path.write_bytes(safetensors_bytes(tensors, {"format": FORMAT, "version": "1", "concept": json.dumps(facts)}))
    with pytest.raises(ConceptFileError, match="each context must have one {}"):
        Concept.load(path)


def test_more_tokens_than_are_read_are_an_error(tiny: Backbone, tmp_path: Path) -> None:
    tokens = tuple(f"<{number}>" for number in range(MAX_TOKENS + 1))
    path = make_concept(tiny, tokens=tokens).save(tmp_path / "many.safetensors")
    with pytest.raises(ConceptFileError, match=rf"many.safetensors.*{len(tokens)} tokens; at most {MAX_TOKENS}"):
        Concept.load(path)
