"""Errors that a user is meant to read."""


class InputError(Exception):
    """Something the user gave is wrong: one sentence that says what, where, and how to mend it.

    The command line prints the sentence alone and exits with code 2; from Python it is an ordinary exception.
    """


class CountingError(RuntimeError):
    """The two counts disagree, or the model runs an operator that nobody knows the cost of."""


def nearest(word: str, known: list[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name that begins or is most like `word`, or an empty string."""
    import difflib

    beginnings = [name[: len(word)] for name in known]
    close = difflib.get_close_matches(word, [*known, *beginnings], n=1, cutoff=0.5)
    if not close:
        return ""
    begun = [name for name, beginning in zip(known, beginnings, strict=True) if beginning == close[0]]
    found = close[0] if close[0] in known else min(begun, key=len)
    return f" (did you mean '{found}'?)"
