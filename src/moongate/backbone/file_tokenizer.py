"""CLIP's tokenizer from its `tokenizer.json`, without transformers, whose import takes longer than a merge.

It has those methods of transformers' own that reading text needs, with their names and arguments.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer

from moongate.texts import parse_json, read_text

__all__ = ["FileTokenizer"]


class FileTokenizer:
    """A tokenizer of a model folder.

    Args:
        folder: The folder with `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        OSError: A file is missing.
        ValueError: A file cannot be read, or says too little.
    """

    def __init__(self, folder: Path) -> None:
        config = parse_json(read_text(folder / "tokenizer_config.json"))
        if config.get("tokenizer_class") not in ("CLIPTokenizer", "CLIPTokenizerFast"):
            raise ValueError(f"{folder} holds another tokenizer")
        self.own = Tokenizer.from_str(read_text(folder / "tokenizer.json"))
        self.model_max_length = int(config["model_max_length"])
        self.eos_token, self.unk_token, self.pad_token = (_text(config[f"{name}_token"]) for name in SPECIAL)
        if None in (self.eos_token_id, self.unk_token_id, self.own.token_to_id(self.pad_token)):
            raise ValueError(f"{folder} lacks special tokens")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the end of a caption."""
        return self.own.token_to_id(self.eos_token)

    @property
    def unk_token_id(self) -> int | None:
        """The id of what cannot be read."""
        return self.own.token_to_id(self.unk_token)

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: str | bool = False,
        max_length: int = 0,
        **_others: Any,
    ) -> SimpleNamespace:
        """Return the ids of a text, or with `padding` a tensor of those of several, padded or cut to one length."""
        if not padding:
            self.own.no_padding()
            self.own.no_truncation()
            return SimpleNamespace(input_ids=self.own.encode(texts, add_special_tokens=add_special_tokens).ids)
        self.own.enable_truncation(max_length)
        self.own.enable_padding(
            length=max_length, pad_id=self.own.token_to_id(self.pad_token), pad_token=self.pad_token
        )
        encoded = self.own.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return SimpleNamespace(input_ids=torch.tensor([one.ids for one in encoded]))

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of a text, without start and end."""
        self.own.no_padding()
        self.own.no_truncation()
        return self.own.encode(text, add_special_tokens=False).tokens

    def add_tokens(self, tokens: Sequence[str]) -> int:
        """Add new tokens and return how many."""
        return self.own.add_tokens(list(tokens))

    def get_vocab(self) -> dict[str, int]:
        """Return all pieces with their ids."""
        return self.own.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Return the pieces that were added, among them start and end, with their ids."""
        return {token.content: index for index, token in self.own.get_added_tokens_decoder().items()}

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a piece."""
        return self.own.token_to_id(token)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the pieces of ids."""
        return [self.own.id_to_token(index) or self.unk_token for index in ids]


SPECIAL = ("eos", "unk", "pad")


def _text(token: Any) -> str:
    """Return a special token, which older files describe by an object."""
    return str(token["content"] if isinstance(token, dict) else token)
