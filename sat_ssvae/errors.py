"""The exception for errors that the user can fix, shown as one line without a traceback, and its hints."""

import difflib
from collections.abc import Iterable, Sized


class UserError(ValueError):
    """A mistake in the input, the configuration or the environment. The message says what to do about it."""


def one_line(said: object, length: int | None = None) -> str:
    """A text, or the message of an error, without line breaks; the error's class if it has no message."""
    return " ".join(str(said).split())[:length] or type(said).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the error's class if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def and_more(found: Sized) -> str:
    """What follows the first of several, ` (and 2 more)`; empty if it is the only one."""
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` is probably a misspelling of."""
    words = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), list(words), n=1, cutoff=0.55)
    return words[near[0]] if near else None


def likeness(word: str, known: Iterable[str]) -> float:
    """Similarity of `word` and the nearest known word, at most 1; 0 if none is near."""
    near = nearest(word, known)
    return difflib.SequenceMatcher(None, near.lower(), word.lower()).ratio() if near else 0.0


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A question with the nearest known word; `otherwise` if none is near."""
    near = nearest(word, known)
    return f"did you mean `{near}`?" if near else otherwise
