"""Errors that a user is meant to read."""


class InputError(Exception):
    """Something the user gave is wrong: one sentence that says what, where, and how to mend it.

    The command line prints the sentence alone and exits with code 2; from Python it is an ordinary exception.
    """


class CountingError(RuntimeError):
    """The two counts disagree, or the model runs an operator that nobody knows the cost of."""


def nearest(word: str, known: list[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name closest to `word`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
