"""The error a user can mend, and the words that help."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something in the user's files or settings is wrong; the program itself is fine.

    Recipes and the command line print it as one line, `error: ...`, without a traceback.

    Args:
        message: One line, `WHERE: WHAT; WHAT TO DO`: the file and field, what is wrong with it,
            and the cure.

    Example:
        >>> raise InputError("train.jsonl:7: no 'target'; every row needs the text to learn")
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a hint at the known names nearest to a mistyped one.

    Args:
        name: What was written.
        known: The names that would have been right.

    Returns:
        `"; did you mean 'a' or 'b'?"`, ready to end a message, or `""` when nothing is near.

    Example:
        >>> did_you_mean("batchsize", ["batch_size", "seed"])
        "; did you mean 'batch_size'?"
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(word) for word in near)}?" if near else ""
