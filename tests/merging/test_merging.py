import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from making import invented
from moongate.backbone import Backbone, Fingerprint
from moongate.backbone.rare_tokens import latest
from moongate.compression import compress
from moongate.concept import Concept, Dense, LowRank, SubjectRecord
from moongate.errors import BaseMismatchError, OptionError
from moongate.merging import MergeOptions, merge
from moongate.merging.constraints import CONTEXTS
from moongate.merging.features import stand_ins
from moongate.merging.neutral import neutral_captions, regularization_gram, weighted_grams
from moongate.sampling import SampleOptions, sample


def values_of_words(backbone: Backbone, concept: Concept, words: str, caption: str) -> torch.Tensor:
    """What the denoiser's own projections make of the words in a caption while the concept is applied."""
    with concept.applied(backbone), torch.no_grad():
        ids = backbone.tokenizer(caption).input_ids
        wanted = backbone.tokenizer(words).input_ids[1:-1]
        start = next(at for at in range(len(ids)) if ids[at : at + len(wanted)] == wanted)
        text = backbone.encode_text([caption]).features[0, start : start + len(wanted)]
        return torch.cat([module(text) for module in backbone.kv_projections()], -1)


def full(concept: Concept) -> dict[str, torch.Tensor]:
    return {name: change.full() for name, change in concept.deltas.items()}


def assert_alike(one: Concept, other: Concept, *, tolerance: float = 1e-4) -> None:
    assert one.deltas.keys() == other.deltas.keys()
    for name, change in full(one).items():
        assert (change - other.deltas[name].full()).norm() <= tolerance * change.norm(), name


def test_each_subject_keeps_the_values_its_own_concept_gives_it(each: Backbone, tmp_path: Path) -> None:
    pair = [invented(each, ("<one>", "bear"), seed=1), invented(each, ("<two>", "cat"), seed=2)]
    merged = merge(each, pair, options=MergeOptions(cache=tmp_path)).concept
    for concept, words in zip(pair, ("<one> bear", "<two> cat"), strict=True):
        caption = f"photo of a {words}"
        kept = values_of_words(each, merged, words, caption)
        torch.testing.assert_close(kept, values_of_words(each, concept, words, caption), rtol=1e-4, atol=1e-4)
        assert torch.equal(merged.tokens[words.split()[0]], concept.tokens[words.split()[0]])
    assert merged.token_widths == each.token_widths
    again = merge(each, pair, options=MergeOptions(cache=tmp_path)).concept  # with the Gram matrix that was kept
    assert again.hash == merged.hash


def test_one_concept_alone_is_cleaned(tiny: Backbone, pair: Sequence[Concept]) -> None:
    merged = merge(tiny, pair[:1])
    kept = values_of_words(tiny, merged.concept, "<one> bear", "photo of a <one> bear")
    torch.testing.assert_close(
        kept, values_of_words(tiny, pair[0], "<one> bear", "photo of a <one> bear"), rtol=1e-4, atol=1e-4
    )
    assert merged.report.drift < merged.report.subjects[0].drift_alone
    assert merged.report.subjects[0].worst_residual < 1e-9


def test_the_users_own_captions_are_recorded_by_number_and_digest(tiny: Backbone, pair: Sequence[Concept]) -> None:
    own = ("zebra", "unicorn", "dragon")
    nothing, three, two = (
        merge(tiny, pair, options=MergeOptions(captions=captions)).concept.record.get("further_captions", {})
        for captions in ((), own, own[:2])
    )
    assert nothing == {}
    assert (three["count"], two["count"]) == (3, 2)
    assert three["sha256"] == hashlib.sha256(b"zebra\nunicorn\ndragon").hexdigest()


def test_the_order_does_not_matter(tiny: Backbone, pair: Sequence[Concept]) -> None:
    assert_alike(merge(tiny, pair).concept, merge(tiny, pair[::-1]).concept)


def test_it_is_stored_by_its_own_low_rank(tiny: Backbone, pair: Sequence[Concept], tmp_path: Path) -> None:
    merged = merge(tiny, pair, options=MergeOptions(elsewhere=0))
    assert {change.rank for change in merged.concept.deltas.values()} == {merged.report.rank}
    assert merged.report.rank + merged.report.capacity == 14  # the empty prompt takes an eighth of 16
    back = Concept.load(merged.concept.save(tmp_path / "ab.safetensors"))
    assert back.hash == merged.concept.hash
    assert [subject.words for subject in back.subjects] == ["<one> bear", "<two> cat"]


def test_what_was_added_can_be_taken_out_again(tiny: Backbone, pair: Sequence[Concept], tmp_path: Path) -> None:
    both = merge(tiny, pair).concept
    third = invented(tiny, ("<three>", "dog"), seed=3)
    file = merge(tiny, [both, third]).concept.save(tmp_path / "abc.safetensors")
    options = MergeOptions(without=("<three>",))
    assert_alike(merge(tiny, [Concept.load(file)], options=options).concept, both, tolerance=1e-3)
    options = MergeOptions(without=("<one> bear", "<three>"))
    taken = merge(tiny, [Concept.load(file)], options=options).concept
    assert list(taken.tokens) == ["<two>"]
    assert_alike(taken, merge(tiny, pair[1:], options=MergeOptions(contexts=1)).concept, tolerance=1e-3)


def test_adding_one_by_one_is_merging_all(tiny: Backbone, pair: Sequence[Concept]) -> None:
    options = MergeOptions(contexts=1)
    third = invented(tiny, ("<three>", "dog"), seed=3)
    stepwise = merge(tiny, [merge(tiny, pair, options=options).concept, third], options=options).concept
    assert_alike(stepwise, merge(tiny, [*pair, third], options=options).concept, tolerance=1e-3)


def test_a_concept_can_be_merged_with_itself_and_written(
    tiny: Backbone, pair: Sequence[Concept], tmp_path: Path
) -> None:
    twice = Concept.load(merge(tiny, [pair[0], pair[0]]).concept.save(tmp_path / "twice.safetensors"))
    assert torch.equal(twice.tokens["<one>"], twice.tokens["<one2>"])


def test_joint_tokenless_and_compressed_concepts_can_be_merged(tiny: Backbone) -> None:
    joint = invented(tiny, ("<one>", "bear"), ("<two>", "cat"), seed=1)
    plain = invented(tiny, (None, "teddy bear"), seed=2)
    small = compress(invented(tiny, ("<three>", "dog"), seed=3), energy=0.5).concept
    assert isinstance(next(iter(small.deltas.values())), LowRank)
    merged = merge(tiny, [joint, plain, small], options=MergeOptions(contexts=1))
    assert merged.report.feasible
    for concept, words in ((joint, "<one> bear"), (joint, "<two> cat"), (plain, "teddy bear"), (small, "<three> dog")):
        caption = f"photo of a {words}"
        kept = values_of_words(tiny, merged.concept, words, caption)
        torch.testing.assert_close(kept, values_of_words(tiny, concept, words, caption), rtol=1e-3, atol=1e-3)


def test_more_subjects_than_the_features_have_room_for_are_refused(tiny: Backbone) -> None:
    words = ("bear", "cat", "dog", "chair", "beach")
    concepts = [invented(tiny, (f"<{word}>", word), seed=seed) for seed, word in enumerate(words)]
    with pytest.raises(OptionError, match=r"18 constraints fill all 14 dimensions.*Merge fewer"):
        merge(tiny, [*concepts, invented(tiny, ("<x>", "red"), seed=9)])


def test_another_base_and_other_weights_are_refused(
    tiny: Backbone, pair: Sequence[Concept], other_folder: Path
) -> None:
    with pytest.raises(BaseMismatchError, match="was made for"):
        merge(Backbone.load(other_folder, device="cpu"), pair)
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight"
    more = {**pair[0].deltas, name: Dense(delta=torch.zeros_like(tiny.parameter(name)))}
    with pytest.raises(OptionError, match=r"to_q.*only keys and values"):
        merge(tiny, [replace(pair[0], deltas=more)])
    with pytest.raises(OptionError, match=r"no subject '<x>'.*'<one> bear', '<two> cat'"):
        merge(tiny, pair, options=MergeOptions(without=("<x>",)))
    with pytest.raises(OptionError, match="no concept"):
        merge(tiny, [])
    with pytest.raises(OptionError, match=f"contexts is 99.*{len(CONTEXTS)}"):
        MergeOptions(contexts=99)


def test_of_all_changes_that_keep_the_words_it_moves_neutral_captions_least(
    tiny: Backbone, pair: Sequence[Concept]
) -> None:
    """Stationarity, with rows and places found by hand: words and end of "photo of a <one> bear"."""
    merged = merge(tiny, pair, options=MergeOptions(contexts=1, unconditional="free", elsewhere=0)).concept
    with tiny.tokens(merged.tokens), torch.no_grad():
        captions = ["photo of a <one> bear", "photo of a <two> cat"]
        rows = tiny.encode_text(captions).features[:, 4:7].double()
    gram = regularization_gram(tiny, neutral_captions())
    cost = gram + 1e-6 * gram.diagonal().mean() * torch.eye(len(gram))
    free = torch.from_numpy(scipy.linalg.null_space(rows.flatten(0, 1).numpy()))
    for name, change in merged.deltas.items():
        delta = change.full().double()
        for concept, own in zip(pair, rows, strict=True):
            wanted = own @ concept.deltas[name].full().double().T
            assert (own @ delta.T - wanted).norm() <= 1e-4 * wanted.norm()
        gradient = delta @ cost
        assert (gradient @ free).norm() <= 1e-2 * gradient.norm()


def test_a_subject_named_in_anothers_context_can_be_taken_out_again(tiny: Backbone) -> None:
    """The end of a context that names another subject stays a constraint of the subject whose context it is."""
    taught = SubjectRecord(category="bear", token="<one>", prompts=("a <one> bear in a cat",))
    bear = replace(invented(tiny, ("<one>", "bear"), seed=1), subjects=(taught,))
    once = merge(tiny, [bear], options=MergeOptions(contexts=1)).concept
    both = merge(tiny, [once, invented(tiny, (None, "cat"), seed=2)], options=MergeOptions(contexts=1)).concept
    assert_alike(merge(tiny, [both], options=MergeOptions(without=("cat",))).concept, once, tolerance=1e-3)


def test_the_empty_prompt_keeps_the_keys_and_values_of_the_base(each: Backbone) -> None:
    """All of them where an eighth of the width has room for its tokens; here that part of them that it has room for."""
    pair = [invented(each, ("<one>", "bear"), seed=1), invented(each, ("<two>", "cat"), seed=2)]
    fixed, free = (merge(each, pair, options=MergeOptions(unconditional=how)) for how in ("fixed", "free"))
    width = next(iter(fixed.concept.deltas.values())).shape[1]
    with torch.no_grad():
        empty = each.encode_text([""]).features[0].double()
    room = torch.linalg.svd(empty).Vh[: width // 8]
    for name, change in fixed.concept.deltas.items():
        moved = change.full().double() @ room.T
        assert moved.norm() <= 1e-6 * change.full().norm()
        assert (free.concept.deltas[name].full().double() @ room.T).norm() > 1e3 * moved.norm()
    assert fixed.report.unconditional < free.report.unconditional


def test_a_merge_names_its_base_whichever_concepts_do(tiny: Backbone, pair: Sequence[Concept]) -> None:
    """Its weights are made for the model that it was made with, also if no concept says which model it is for."""
    first, second = (replace(concept, base="", fingerprint=Fingerprint.unknown()) for concept in pair)
    for concepts in ([first, second], [first, pair[1]], [pair[0], second]):
        merged = merge(tiny, concepts).concept
        assert (merged.base, merged.fingerprint) == (tiny.name, tiny.fingerprint)


@pytest.mark.parametrize("only", ["keys", "values"])
def test_keys_or_values_alone_can_be_merged(tiny: Backbone, pair: Sequence[Concept], only: str) -> None:
    both, half = merge(tiny, pair).concept, merge(tiny, pair, options=MergeOptions(only=only)).concept
    ending = {"keys": "to_k.weight", "values": "to_v.weight"}[only]
    assert half.deltas.keys() == {name for name in both.deltas if name.endswith(ending)}
    for name, change in half.deltas.items():
        assert torch.equal(change.full(), both.deltas[name].full())
    keys = {name: change for name, change in pair[0].deltas.items() if name.endswith("to_k.weight")}
    with pytest.raises(OptionError, match="change no values"):
        merge(tiny, [replace(pair[0], deltas=keys)], options=MergeOptions(only="values"))


def test_adding_to_a_merge_gives_the_bytes_of_merging_all_at_once(
    tiny: Backbone, pair: Sequence[Concept], tmp_path: Path
) -> None:
    """Also where all at once leave room for fewer contexts than the first two alone."""
    third = invented(tiny, ("<three>", "dog"), seed=3)
    options = MergeOptions(contexts=None, cache=tmp_path / "cache")
    file = merge(tiny, pair[:1], options=options).concept.save(tmp_path / "a.safetensors")
    both = merge(tiny, [Concept.load(file), pair[1]], options=options).concept
    assert both.file_bytes == merge(tiny, pair, options=options).concept.file_bytes
    file = both.save(tmp_path / "ab.safetensors")
    added = merge(tiny, [Concept.load(file), third], options=options).concept
    assert added.file_bytes == merge(tiny, [*pair, third], options=options).concept.file_bytes


def test_taking_out_one_of_two_that_contradict_gives_the_other_its_values_back(tiny: Backbone) -> None:
    """A stored merge knows what each subject was to keep, and not only the compromise."""
    pair = [invented(tiny, (None, "bear"), seed=1), invented(tiny, ("<two>", "cat"), seed=2)]
    pair[1] = replace(pair[1], tokens={"<two>": tiny.word_row("bear")})
    merged = merge(tiny, [pair[0], replace(pair[0], subjects=(SubjectRecord(category="cat"),)), pair[1]]).concept
    alone = merge(tiny, [merged], options=MergeOptions(without=("cat", "<two>"))).concept
    assert alone.file_bytes == merge(tiny, pair[:1], options=MergeOptions(contexts=1)).concept.file_bytes


def test_rows_that_do_not_fit_their_record_are_named(tiny: Backbone, pair: Sequence[Concept]) -> None:
    merged = merge(tiny, pair).concept
    short, flat, single = (
        {name: change(rows) for name, rows in merged.kept.items()}
        for change in (lambda rows: rows[:-1], lambda rows: rows[:, 0], lambda rows: rows[0, 0])
    )
    narrow, unknown = {**merged.kept}, {**merged.kept, "other": merged.kept["features"]}
    narrow[min(merged.deltas)] = narrow[min(merged.deltas)][:, :-1]
    counted = [{**merged.record["rows"][0], "counts": counts, "soft": 19 - sum(counts)} for counts in ([0], [-1], [20])]
    counted += [{**counted[0], "counts": []}, {**counted[0], "counts": [1e400]}]
    of_rows = [replace(merged, kept=kept) for kept in (short, flat, single, narrow, unknown)]
    of_records = [
        replace(merged, record={**merged.record, "rows": rows})
        for rows in ([], *([facts, merged.record["rows"][1]] for facts in counted))
    ]
    for broken in (*of_rows, *of_records):
        with pytest.raises(OptionError, match="do not fit its record"):
            merge(tiny, [broken])


def test_further_contexts_bring_a_subject_nearer_to_itself_there(
    tiny: Backbone, pair: Sequence[Concept], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the limit of a large weight, the features of the further contexts are met as well as by constraints."""
    captions = ("{} dog", "far {}")
    monkeypatch.setattr("moongate.merging.constraints.ELSEWHERE", captions)
    monkeypatch.setattr("moongate.merging.constraints.BESIDE", ())

    def missed(weight: float) -> float:
        merged = merge(tiny, pair[:1], options=MergeOptions(contexts=1, elsewhere=weight)).concept
        kept, own = (
            torch.stack(
                [values_of_words(tiny, concept, "<one> bear", caption.format("<one> bear")) for caption in captions]
            )
            for concept in (merged, pair[0])
        )
        return float((kept - own).norm() / own.norm())

    without, some, much = missed(0), missed(1e3), missed(1e9)
    assert without > some > much
    assert much < 1e-3


def test_a_model_whose_vocabulary_has_none_of_the_usual_rare_tokens_is_merged_with_its_own(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Rare tokens stand in for other subjects in further contexts."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "moongate.json").write_text("{}")
    backbone = Backbone.load(folder, device="cpu", text_only=True)
    assert not backbone.rare_tokens
    rows = torch.stack([*stand_ins(backbone).values()])
    started = torch.stack([backbone.token_row(token) for token in latest(backbone)[:4]])
    torch.testing.assert_close((rows - started.flip(0)).norm(dim=1), 0.1 * started.flip(0).norm(dim=1))
    assert merge(backbone, [invented(backbone, ("<one>", "bear"))]).report.feasible


def test_neutral_captions_can_count_by_how_far_the_concepts_move_them(tiny: Backbone, pair: Sequence[Concept]) -> None:
    """The Gram matrix of one layer against a sum over features in Python."""
    captions = ["left out", "a red chair", "dog"]
    layer = next(iter(pair[0].deltas))
    changes = [concept.deltas[layer].full() for concept in pair]
    gram = weighted_grams(tiny, captions, {layer: changes})[layer]
    with torch.no_grad():
        texts, ids = tiny.encode_text([*captions[1:], ""]).features.double(), tiny.token_ids([*captions[1:], ""])
    rows, weights, moved = [], [], []
    for text, length, share in zip(
        texts, (ids == tiny.tokenizer.eos_token_id).int().argmax(1), (1, 1, 0.2), strict=True
    ):
        for position, feature in enumerate(text):
            rows.append(feature)
            weights.append(share * (1 if position <= length else 1 / (len(text) - 1 - int(length))))
            moved.append(sum(float((change.double() @ feature).square().sum()) for change in changes) ** 0.5)
    mean = sum(moved) / len(moved)
    parts = zip(rows, weights, moved, strict=True)
    expected = sum(weight * move / mean * torch.outer(row, row) for row, weight, move in parts)
    torch.testing.assert_close(gram, expected, rtol=1e-5, atol=1e-5)
    options = MergeOptions(contexts=1, neutral="in-danger")
    merged = merge(tiny, pair, options=options)
    assert merged.report.feasible
    assert merged.concept.record["neutral"] == "in-danger"
    keys = {name: change for name, change in pair[0].deltas.items() if name.endswith("to_k.weight")}
    edited = merge(tiny, [replace(pair[0], deltas=keys)], options=replace(options, erase=("dog=>chair",)))
    assert edited.concept.deltas.keys() == pair[0].deltas.keys()  # also the values that no concept moves


@pytest.mark.slow
def test_with_a_merge_on_pocket_the_empty_prompt_draws_what_the_base_draws() -> None:
    """Pocket's width has room for all tokens of the empty prompt, so guidance subtracts what the base would."""
    backbone = Backbone.load("pocket", device="cpu")
    concepts = [invented(backbone, ("<one>", "bear"), seed=1), invented(backbone, ("<two>", "cat"), seed=2)]
    merged = merge(backbone, concepts, options=MergeOptions(contexts=1))
    assert merged.report.unconditional < 1e-12

    def drawn(prompt: str) -> np.ndarray:
        return next(iter(sample(backbone, [prompt], seeds=[0], options=SampleOptions(steps=2)))).image.astype(int)

    prompts = ("", "photo of a cat")
    before = [drawn(prompt) for prompt in prompts]
    with merged.concept.applied(backbone):
        empty, cat = (np.abs(drawn(prompt) - was) for prompt, was in zip(prompts, before, strict=True))
    assert empty.max() <= 1  # the factors are stored in float32
    assert cat.max() > 5
