from recipe.pretrain.pieces import learn_pieces

CAPTIONS = [f"photo of a {name} on the beach" for name in ("dog", "cat", "teddy bear")] * 30


def test_pieces_are_words_and_everything_can_be_spelt() -> None:
    tokenizer = learn_pieces(CAPTIONS)
    assert tokenizer.tokenize("Photo of a teddy bear") == ["photo</w>", "of</w>", "a</w>", "teddy</w>", "bear</w>"]
    assert tokenizer.eos_token not in tokenizer.tokenize("zebra, 42% of é!")
    assert tokenizer("dog").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer("dog").input_ids[-1] == tokenizer.eos_token_id
