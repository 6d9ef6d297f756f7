"""Answer questions, one JSON object a line of standard input: `python -m moongate.studio.worker`."""

import json
import os
import sys
import traceback
import warnings
from typing import Any

from moongate.errors import MoongateError, first_line
from moongate.studio.worker import answer
from moongate.studio.worker.bench import Bench, Setup

__all__: list[str] = []


def main(setup: str) -> None:
    """Answer until standard input ends, as it does when the server ends, however that happens."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer

    def say(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    warnings.simplefilter("ignore")
    bench = Bench(Setup(**json.loads(setup)))
    for line in sys.stdin:
        question = json.loads(line)
        try:
            say(answer=answer(bench, question["kind"], question["arguments"]))
        except BrokenPipeError:  # the server has ended
            return
        except (MoongateError, OSError) as error:
            say(error=type(error).__name__, text=str(error))
        except Exception as error:  # one question that fails takes no other along
            traceback.print_exc()
            say(error=type(error).__name__, text=first_line(error))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "{}")
