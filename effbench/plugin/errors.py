"""What a user can cause: one clear line that says what was given, what is allowed, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input; the command line prints the message alone and exits with 2."""


def unknown(kind: str, given: str, known: Iterable[str]) -> InputError:
    """`unknown technique 'lroa': did you mean 'lora'?`, or all known names where none is near."""
    names = sorted(known)
    near = get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names) or 'none'}"
    return InputError(f"unknown {kind} {given!r}: {hint}")
