import pytest
import torch

from conftest import make_tokenizer
from moongate.backbone import Backbone
from moongate.editing.alignment import Alignment, Word, align, positions_of, spelled
from moongate.errors import OptionError

LENGTH = 16


def words(prompt: str) -> list[Word]:
    """Words of one piece each, except that a word with hyphens has a piece for each of its parts."""
    found, position = [], 1
    for word in prompt.split():
        count = word.count("-") + 1
        found.append((word, list(range(position, position + count))))
        position += count
    return found


def aligned(source: str, target: str) -> Alignment:
    return align(words(source), words(target), length=LENGTH)


def taken(alignment: Alignment, target: int) -> dict[int, float]:
    """The source's tokens whose attention a token of the target takes, each with its share."""
    column = alignment.mapping[:, target]
    return {int(source): float(column[source]) for source in column.nonzero()[:, 0]}


def test_the_same_prompt_is_aligned_with_itself() -> None:
    alignment = aligned("a photo of a sea-horse", "a photo of a sea-horse")
    assert torch.equal(alignment.mapping, torch.eye(LENGTH))
    assert not alignment.own.any()


def test_a_replaced_word_takes_the_attention_of_the_word_in_its_place() -> None:
    alignment = aligned("photo of a cat in snow", "photo of a dog in snow")
    assert torch.equal(alignment.mapping, torch.eye(LENGTH))


def test_a_word_gives_all_its_attention_to_the_pieces_of_another() -> None:
    alignment = aligned("a cat here", "a sea-horse here")
    assert taken(alignment, 2) == taken(alignment, 3) == {2: 0.5}
    assert taken(alignment, 4) == {3: 1}, "words behind it move by one place"
    back = aligned("a sea-horse here", "a cat here")
    assert taken(back, 2) == {2: 1, 3: 1}
    assert taken(back, 3) == {4: 1}


def test_a_new_token_keeps_its_own_attention_and_its_category_takes_the_old_one() -> None:
    alignment = aligned("photo of a dog", "photo of a <rex> dog")
    assert alignment.own.nonzero()[:, 0].tolist() == [4]
    assert taken(alignment, 5) == {4: 1}


def test_the_last_of_several_words_replaces_the_last() -> None:
    alignment = aligned("a cat on sand", "a <rex> dog in snow")
    assert [taken(alignment, target) for target in (3, 4, 5)] == [{2: 1}, {3: 1}, {4: 1}]
    assert alignment.own.nonzero()[:, 0].tolist() == [2], "the new token is added"


def test_words_that_are_gone_give_their_attention_to_none() -> None:
    alignment = aligned("a red cat in snow", "a cat in snow")
    assert alignment.mapping[2].sum() == 0
    assert [taken(alignment, target) for target in (1, 2, 3, 4)] == [{1: 1}, {3: 1}, {4: 1}, {5: 1}]


def test_repeated_words_are_aligned_in_their_order() -> None:
    alignment = aligned("a dog and a cat", "a dog and a red cat and a dog")
    assert [taken(alignment, target) for target in (1, 2, 3, 4, 6)] == [{1: 1}, {2: 1}, {3: 1}, {4: 1}, {5: 1}]
    assert alignment.own.nonzero()[:, 0].tolist() == [5, 7, 8, 9]


def test_end_and_padding_are_aligned_in_order_and_what_is_left_keeps_its_own() -> None:
    longer = aligned("a cat", "a very small cat")
    assert taken(longer, 0) == {0: 1}
    assert [taken(longer, target) for target in range(5, LENGTH)] == [{source: 1} for source in range(3, LENGTH - 2)]
    shorter = aligned("a very small cat", "a cat")
    assert taken(shorter, 3) == {5: 1}
    assert shorter.own.nonzero()[:, 0].tolist() == [LENGTH - 2, LENGTH - 1]


@pytest.mark.parametrize(("source", "target"), [("a cat in snow", "a <rex> dog in sand"), ("a sea-horse", "a cat")])
def test_every_token_takes_from_the_source_or_keeps_its_own(source: str, target: str) -> None:
    alignment = aligned(source, target)
    assert torch.equal(alignment.mapping.sum(0) == 0, alignment.own == 1)
    assert set(alignment.mapping.sum(1).tolist()) <= {0.0, 1.0}


def test_prompts_without_a_common_word_cannot_be_aligned() -> None:
    with pytest.raises(OptionError, match="'a cat' and 'my dog' have no word in common"):
        aligned("a cat", "my dog")


def test_a_prompt_that_is_cut_off_is_aligned_as_far_as_it_is_read(tiny: Backbone) -> None:
    """The tokenizer reads 14 pieces; of the last word it reads a part, which is aligned as padding is."""
    assert make_tokenizer().model_max_length == LENGTH
    long = "photo of a red dog on the beach in a very small qqqqqq"
    source, target = (tiny.words(prompt) for prompt in (long, long.replace("dog", "cat")))
    assert spelled(source)[-1] == "small"
    assert torch.equal(align(source, target, length=LENGTH).mapping, torch.eye(LENGTH))


def test_words_are_found_by_what_they_say() -> None:
    prompt = words("a red sea-horse and a red cat")
    assert positions_of(prompt, ["red"]) == [2, 7], "at each of their occurrences"
    assert positions_of(prompt, ["red", "sea-horse"]) == [2, 3, 4]
    assert positions_of(prompt, ["re"]) == positions_of(prompt, ["horse"]) == positions_of(prompt, []) == []


def test_words_are_split_as_the_tokenizer_splits_them(tiny: Backbone) -> None:
    with tiny.tokens({"<Rex>": tiny.token_row(20)}):
        prompt = tiny.words("photo of a <Rex> teddy bear, red")
        assert positions_of(prompt, spelled(tiny.words("Teddy bear"))) == [5, 6]
        assert positions_of(prompt, spelled(tiny.words("<Rex>"))) == [4]
        assert positions_of(prompt, spelled(tiny.words("bear"))) == [6]
