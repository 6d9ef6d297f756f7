from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moongate.backbone import Backbone
from moongate.compression import compress
from moongate.concept import Concept, SubjectRecord
from moongate.data import Regularization, Subject
from moongate.errors import OptionError, TokenError
from moongate.merging import MergeOptions, merge
from moongate.merging.constraints import value_change
from moongate.merging.edits import Edit, edits_of, features_of
from moongate.merging.features import FORMS, fitting
from moongate.merging.page import verdict, write_report
from moongate.training import TrainOptions, train
from moongate.training.method import METHODS

ONE = MergeOptions(erase=("dog=>red chair",), contexts=1)


def keys_and_values(backbone: Backbone, caption: str) -> torch.Tensor:
    with torch.no_grad():
        text = backbone.encode_text([caption]).features[0]
        return torch.cat([module(text) for module in backbone.kv_projections()], -1)


def test_an_erased_word_has_the_keys_and_values_of_the_other_words_in_the_same_caption(tiny: Backbone) -> None:
    """ "photo of a dog" and "photo of a red chair": the last piece stands at 4 and 5, the end behind it."""
    wanted = keys_and_values(tiny, "photo of a red chair")
    merged = merge(tiny, options=ONE)
    with merged.concept.applied(tiny):
        now = keys_and_values(tiny, "photo of a dog")
    torch.testing.assert_close(now[4:6], wanted[5:7], rtol=1e-4, atol=1e-4)
    assert (merged.concept.subjects, merged.concept.base) == ((), tiny.name)
    assert merged.report.edits[0].residual < 1e-9
    assert verdict(merged.report)[0].startswith("dog is read as red chair: ")


def test_protected_words_keep_their_keys_and_values_beside_an_erased_one(tiny: Backbone) -> None:
    before = keys_and_values(tiny, "photo of a cat")
    options = MergeOptions(erase=ONE.erase, protect=("cat",), contexts=1)
    merged = merge(tiny, options=options)
    with merged.concept.applied(tiny):
        guarded = keys_and_values(tiny, "photo of a cat")
    with merge(tiny, options=ONE).concept.applied(tiny):
        moved = keys_and_values(tiny, "photo of a cat")
    torch.testing.assert_close(guarded[4:6], before[4:6], rtol=1e-4, atol=1e-4)
    assert (moved[4:6] - before[4:6]).norm() > 10 * (guarded[4:6] - before[4:6]).norm()
    assert [edit.name for edit in merged.report.edits] == ["dog=>red chair", "cat"]


def test_an_erased_word_is_read_as_the_other_words_in_further_sentences_too(tiny: Backbone) -> None:
    """With the soft rows of further contexts more than without, in each kind of sentence."""
    sentences = fitting(tiny, "red chair", [f"{form} in a forest" for form in FORMS])
    features, others = features_of(tiny, Edit.named("dog=>red chair"), sentences, with_end=False)
    missed = {}
    for elsewhere in (0.0, 300.0, 1e5):
        changes = merge(tiny, options=replace(ONE, elsewhere=elsewhere)).concept.deltas
        missed[elsewhere] = torch.zeros(len(sentences)).double()
        for layer, change in changes.items():
            wanted = (others - features) @ tiny.parameter(layer).detach().double().T
            missed[elsewhere] += (value_change(change, features) - wanted).square().sum(1)
    inexact = missed[0.0] > 1e-6
    assert (missed[300.0] < missed[0.0])[inexact].all()
    assert missed[1e5].sum() < 0.3 * missed[0.0].sum()


def test_an_edit_is_kept_by_later_merges_and_can_be_taken_out(
    tiny: Backbone, pair: Sequence[Concept], tmp_path: Path
) -> None:
    edited = Concept.load(merge(tiny, options=ONE).concept.save(tmp_path / "edit.safetensors"))
    options = MergeOptions(contexts=1)
    both = merge(tiny, [edited, pair[0]], options=options)
    at_once = merge(tiny, pair[:1], options=MergeOptions(contexts=1, erase=ONE.erase))
    assert both.concept.file_bytes == at_once.concept.file_bytes
    assert "dog=&gt;red chair" in write_report(both.report, tmp_path).read_text()
    out = merge(tiny, [both.concept], options=MergeOptions(without=("dog=>red chair",), contexts=1)).concept
    assert out.file_bytes == merge(tiny, pair[:1], options=options).concept.file_bytes


def test_an_edit_that_was_compressed_or_scaled_is_named_when_it_is_merged(
    tiny: Backbone, pair: Sequence[Concept]
) -> None:
    """Its rows are lost then, and the change of the weights alone does not say what it does to which words."""
    for concepts in ([], pair[:1]):
        edited = merge(tiny, concepts, options=ONE).concept
        for changed in (compress(edited).concept, edited.scaled(0.8)):
            with pytest.raises(OptionError, match=r"\(dog=>red chair\).*cannot be kept.*Merge the original"):
                merge(tiny, [changed, pair[1]])
    merge(tiny, [compress(merge(tiny, pair[:1]).concept).concept.scaled(0.8), pair[1]])  # subjects keep their values


def test_an_edit_that_a_training_started_from_is_named_when_the_result_is_merged(
    tiny: Backbone, pair: Sequence[Concept], make_subject: Callable[..., Subject], prior: Regularization
) -> None:
    """The training goes on from the edited weights, but no longer knows what the edit does to which words."""
    concept = merge(tiny, pair[:1], options=ONE).concept
    for token in ("<three>", "<four>"):
        options, method = TrainOptions(steps=1, batch=1), METHODS["custom-diffusion"]
        concept = train(tiny, [make_subject(token)], [prior], method, options=options, start_from=concept)
        with pytest.raises(OptionError, match=r"\(dog=>red chair\).*cannot be kept.*further training"):
            merge(tiny, [concept])


@pytest.mark.parametrize(
    ("erase", "protect", "message"),
    [
        (("dog",), (), "'dog' cannot be read"),
        (("dog=>",), (), "'dog=>' cannot be read"),
        (("=>cat",), (), "'=>cat' cannot be read"),
        (("dog=>cat=>bear",), (), "cannot be read"),
        ((), ("dog=>cat",), "words to protect have no arrow"),
        (("dog=>dog",), (), "would change nothing"),
        (("Dog=>dog",), (), "would change nothing"),
        (("dog=>cat", "dog=>bear"), (), "contradict each other"),
        (("dog=>cat",), ("Dog",), "contradict each other"),
    ],
)
def test_edits_that_cannot_be_meant_are_refused(erase: tuple[str, ...], protect: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        MergeOptions(erase=erase, protect=protect)


def test_edits_of_several_files_are_one_merge_and_must_not_contradict_each_other(
    tiny: Backbone, pair: Sequence[Concept]
) -> None:
    erased, other = (merge(tiny, options=MergeOptions(erase=(f"dog=>{words}",))).concept for words in ("cat", "bear"))
    taught = replace(pair[0], tokens={}, subjects=(SubjectRecord(category="dog"),))
    for concepts, options in (
        ([erased, other], {}),
        ([erased], {"protect": ("Dog",)}),
        ([erased], {"erase": ("dog=>bear",)}),
        ([erased, taught], {}),
    ):
        with pytest.raises(OptionError, match="contradict each other|is a subject of the merge"):
            merge(tiny, concepts, options=MergeOptions(**options))
    for concepts, options in (([erased, erased], {}), ([erased], {"erase": ("Dog=>cat",)})):
        assert merge(tiny, concepts, options=MergeOptions(**options)).concept.file_bytes == erased.file_bytes
    instead = MergeOptions(erase=("dog=>bear",), without=("dog=>cat",))
    assert merge(tiny, [erased], options=instead).concept.file_bytes == other.file_bytes
    both = merge(tiny, [taught, pair[1]]).concept
    swapped = merge(tiny, [both], options=MergeOptions(erase=("dog=>cat",), without=("dog",))).concept
    assert [facts["words"] for facts in swapped.record["rows"]] == ["<two> cat", "dog=>cat"]


def test_an_edit_is_read_from_its_name() -> None:
    edits = edits_of(["snowman => object"], ["cat"])
    assert edits == (Edit(words="snowman", becomes="object"), Edit(words="cat"))
    assert [Edit.named(edit.name) for edit in edits] == list(edits)


def test_words_that_the_model_cannot_read_and_words_of_a_subject_are_refused(
    tiny: Backbone, pair: Sequence[Concept]
) -> None:
    with pytest.raises(TokenError, match="has no pieces"):
        merge(tiny, options=MergeOptions(protect=("<|endoftext|>",)))
    with pytest.raises(TokenError, match="has no pieces"):
        merge(tiny, options=MergeOptions(erase=("d\udcf6g=>cat",)))
    with pytest.raises(TokenError, match="too long"):
        merge(tiny, options=MergeOptions(protect=("dog " * 20,)))
    with pytest.raises(OptionError, match="is a subject of the merge"):
        merge(tiny, pair, options=MergeOptions(protect=("<one> Bear",)))
    for options in ({"protect": ("<ONE>",)}, {"erase": ("dog=>a <one> bear",)}, {"erase": ("<rex>=>dog",)}):
        with pytest.raises(TokenError, match="the model itself does not know '<(ONE|one|rex)>'"):
            merge(tiny, pair, options=MergeOptions(**options))


@pytest.mark.parametrize("options", [{"erase": ("Dog=>cat",)}, {"protect": ("Tree",)}, {"protect": ("an",)}], ids=str)
def test_words_that_occur_in_a_context_as_the_tokenizer_reads_it_are_left_out_of_it(
    tiny: Backbone, options: dict[str, tuple[str, ...]]
) -> None:
    """It reads "photo of a Tree and a tree" in lower case, and "photo of an an" has an article that was made to fit."""
    merged = merge(tiny, options=MergeOptions(contexts=1, **options))
    small = {name: tuple(map(str.lower, words)) for name, words in options.items()}
    again = merge(tiny, options=MergeOptions(contexts=1, **small))
    for layer, change in merged.concept.deltas.items():
        assert torch.equal(change.full(), again.concept.deltas[layer].full())


def test_long_protected_words_are_measured_in_short_captions(tiny: Backbone) -> None:
    """They fit into none of the usual captions that are held out."""
    words = "cat dog " * 4 + "cat dog"
    captions = [f"{word} {words}" for word in ("my", "one")]
    before = [keys_and_values(tiny, caption) for caption in captions]
    merged = merge(tiny, options=MergeOptions(erase=ONE.erase, protect=(words,), contexts=1))
    with merged.concept.applied(tiny):
        after = [keys_and_values(tiny, caption) for caption in captions]
    ends = [tiny.tokenizer(caption).input_ids.index(tiny.tokenizer.eos_token_id) for caption in captions]
    was, now = (
        torch.cat([rows[end - 10 : end + 1] for rows, end in zip(all_rows, ends, strict=True)])
        for all_rows in (before, after)
    )
    assert merged.report.edits[1].held_out_error == pytest.approx(float((now - was).norm() / was.norm()), rel=1e-3)


def test_an_erased_word_is_measured_in_captions_without_the_other_words(tiny: Backbone) -> None:
    """Snow is in one of the usual captions that are held out."""
    report = merge(tiny, options=MergeOptions(erase=("dog=>snow",), contexts=1)).report
    assert 0 < report.edits[0].held_out_error < 1
