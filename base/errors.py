"""How Umbel says no: one line with what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UmbelError(Exception):
    """A fault the user can mend.

    Args:
        what: the fault, as a clause without a full stop.
        where: file, key or value that carries it.
        fix: what to do, in the imperative.

    The command line prints it as one line and exits with :attr:`exit_code`.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(": ".join(part for part in (where, what) if part) + (f"; {fix}" if fix else ""))


class RunFailed(UmbelError):
    """The work itself failed (a NaN loss, a dead worker), through no bad input."""

    exit_code = 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'lr'?``, or the list of what is known when nothing is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return "known: " + ", ".join(names) if names else "nothing is known here"
