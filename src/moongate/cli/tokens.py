"""The command `moongate tokens suggest`."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import tyro
from rich.console import Console

from moongate.cli.options import Model, ModelOptions, Name, Output, OutputOptions
from moongate.cli.terminal import print_table, say, say_notes
from moongate.errors import OptionError
from moongate.limits import check_count

__all__ = ["TokensSuggest"]


@dataclass(frozen=True, kw_only=True)
class TokensSuggest:
    """List rare tokens of a model, from which new words can start."""

    source: Annotated[Name, tyro.conf.Positional]
    """Captions to count in: any source of `moongate retrieve index`, or a .txt file with one caption per line."""
    occurrences: tuple[int, int] = (5, 10)
    """Minimum and maximum number of occurrences of a token (paper, App. D)."""
    limit: int = 50
    """Maximum number of tokens to list."""
    model: Model = field(default_factory=ModelOptions)
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.backbone.rare_tokens import suggest
        from moongate.regularization.sources import Skipped, begun, read_captions

        low, high = self.occurrences
        if not 1 <= low <= high:
            raise OptionError(f"occurrences is {low} {high}; give the minimum first, at least 1, then the maximum.")
        check_count("limit", self.limit)
        self.model.check()
        skipped = Skipped()
        captions = begun(read_captions(self.source, skipped), skipped)
        tokens = suggest(self.model.load(), captions, occurrences=self.occurrences)
        say_notes(console, skipped.notes)
        if not tokens:
            raise OptionError(
                f"No alphabetic token that is not part of another occurs {self.occurrences[0]} to "
                f"{self.occurrences[1]} times in {self.source}. Count over more captions, or widen --occurrences."
            )
        listed = tokens[: self.limit]
        print_table(console, ("id", "token", "count"), [(str(t.id), t.text, str(t.count)) for t in listed])
        ids = [token.id for token in listed]
        say(console, f'To start from them, write into moongate.json next to model_index.json: "rare_tokens": {ids}')
        return {"tokens": [asdict(token) for token in listed]}
