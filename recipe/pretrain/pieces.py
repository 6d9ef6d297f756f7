"""Pocket's tokenizer: byte-pair pieces learned from captions, cut and ended as CLIP's are."""

import json
import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

__all__ = ["CONTEXT_TOKENS", "learn_pieces"]

VOCABULARY = 2048
CONTEXT_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_PATTERN = re.escape(START) + "|" + re.escape(END) + r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
"""How CLIP's tokenizer cuts a caption into words, digits and punctuation."""


def learn_pieces(captions: Sequence[str]) -> CLIPTokenizer:
    """Learn byte-pair pieces from captions; every text can be spelled with the tokenizer that is returned.

    Args:
        captions: all captions, in any order; those of pocket give 1,179 pieces.
    """
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORD_PATTERN), "removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        special_tokens=[START, END],
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    trained = json.loads(backend.to_str())["model"]
    for symbol in alphabet:  # as in CLIP, every byte may also end a word: no text is unknown
        trained["vocab"].setdefault(symbol + "</w>", len(trained["vocab"]))
    return CLIPTokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT_TOKENS,
    )
