"""The one error that a user can cause, and how a run ends that is asked to stop."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one sentence saying what was expected, what was found, what to do.

    Programs print the sentence and leave with exit status 2; in Python it is an
    ordinary ``ValueError``.
    """


class StoppedError(SystemExit):
    """SIGTERM asked the run to stop: what is done is saved, a rerun goes on.

    Where nothing catches it, the program leaves with a status of its own, that of a
    failure which passes (EX_TEMPFAIL of sysexits.h).
    """

    STATUS = 75

    def __init__(self) -> None:
        super().__init__(self.STATUS)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence that helps with an unknown `name`.

    >>> did_you_mean("deit_smal", ["deit_small", "vit"])
    "did you mean 'deit_small'?"
    >>> did_you_mean("zzz", ["deit_small", "vit"])
    'known: deit_small, vit'
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(names)
