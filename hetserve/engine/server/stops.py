"""Finds stop strings in text that comes in pieces, and holds back what could still become one. Pure; knows nothing of tokens.

One Knuth-Morris-Pratt automaton per stop string: the result does not depend on how the text was cut, and a character costs the same
whatever the strings are.
"""

from __future__ import annotations

from collections.abc import Sequence


class Automaton:
    """How much of one string the text seen so far ends with."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.matched = 0  # characters of `pattern` that the text ends with
        self._fallback = _fallbacks(pattern)

    def push(self, char: str) -> bool:
        """Takes one character; True when the whole string has just been seen. Not to be used after that."""
        while self.matched and self.pattern[self.matched] != char:
            self.matched = self._fallback[self.matched - 1]
        if self.pattern[self.matched] == char:
            self.matched += 1
        return self.matched == len(self.pattern)


def _fallbacks(pattern: str) -> list[int]:
    """[i]: the longest proper prefix of pattern[:i+1] that is also its suffix."""
    table = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = table[length - 1]
        if pattern[i] == pattern[length]:
            length += 1
        table[i] = length
    return table


class StopFinder:
    """The stop strings of one choice. Of several, the one that is complete first counts; of those complete at once, the longest.

    Args:
        stops: non-empty strings.
        include: whether the text given out ends with the stop string instead of before it.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._automata = [Automaton(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Takes more text. Returns what may be given out now, and the stop string if it has been found (nothing may be pushed after that)."""
        pending = self._held + text
        for end, char in enumerate(text, len(self._held) + 1):
            found = [automaton.pattern for automaton in self._automata if automaton.push(char)]
            if found:
                self._held = ""
                return pending[: end if self._include else end - len(found[0])], found[0]
        keep = max(automaton.matched for automaton in self._automata)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep], None

    def skip(self, text: str) -> str:
        """Takes text that no stop string may begin in; gives it out, after whatever was held."""
        for automaton in self._automata:
            automaton.matched = 0
        return self.flush() + text

    def flush(self) -> str:
        """The text has ended without a stop string: what was held back."""
        held, self._held = self._held, ""
        return held
