"""The added tokens in a text, found as the tokenizers library finds them, by who wrote the text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from varco_runtime.prompt.tokenizer import AddedToken

SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # what `\s` is in the tokenizers library

Span = tuple[int, int]
"""First character and the one behind the last."""


class Owners:
    """The owners of a text's stretches.

    Args:
        spans: The stretches that others than the template wrote, sorted and apart.
    """

    def __init__(self, spans: list[Span]) -> None:
        self._spans = spans
        self._starts = [start for start, _ in spans]

    def end_of_templates(self, start: int, end: int) -> int:
        """Return up to where the text from `start` on is the template's: at most `end`, and `start` where it is not."""
        after = bisect_right(self._starts, start)
        if after and self._spans[after - 1][1] > start:
            return start
        return end if after == len(self._starts) else min(end, self._starts[after])


class _Contents:
    """A finder of the longest of some tokens that a text goes on with, in the time of a binary search.

    Of all tokens that are not greater than the text, the greatest begins with every token that the text begins with;
    `shorter` leads from each token to the longest that it begins with.
    """

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        self._tokens = sorted(tokens, key=lambda token: token.content)
        self._sorted = [token.content for token in self._tokens]
        self._longest = max(map(len, self._sorted), default=0)
        self._shorter: list[int] = []
        for index, content in enumerate(self._sorted):
            before = index - 1
            while before >= 0 and not content.startswith(self._sorted[before]):
                before = self._shorter[before]
            self._shorter.append(before)

    def find(self, text: str, start: int, end: int) -> AddedToken | None:
        """Return the longest token that `text[start:end]` begins with."""
        following = text[start : min(start + self._longest, end)]
        index = bisect_right(self._sorted, following) - 1
        while index >= 0 and not following.startswith(self._sorted[index]):
            index = self._shorter[index]
        return self._tokens[index] if index >= 0 else None


class AddedTokens:
    """A finder of added tokens as the tokenizers library finds them: leftmost, longest, by their flags and owners.

    Args:
        tokens: All added tokens.
        markup: Contents of those that anybody may write.
    """

    def __init__(self, tokens: Sequence[AddedToken], markup: frozenset[str]) -> None:
        first = "".join(re.escape(char) for char in sorted({token.content[0] for token in tokens}))
        self._first = re.compile(f"[{first}]") if first else None
        self._all = _Contents(tokens)
        self._markup = _Contents([token for token in tokens if token.content in markup])

    def cut(self, text: str, start: int, end: int, owners: Owners) -> Iterator[tuple[AddedToken | None, int, int]]:
        """Cut `text[start:end]` into added tokens and the stretches between them.

        Args:
            text: The whole text: what stands around a token decides where its flags ask for it.
            start: Where to begin.
            end: Where to stop.
            owners: Who wrote which part of `text`.

        Yields:
            The token, or None for a stretch without any, and its first character and the one behind its last; in order
            and without gaps.
        """
        position = done = start
        while self._first is not None and (match := self._first.search(text, position, end)):
            token = self._honored(text, match.start(), end, owners)
            if token is None:
                position = match.start() + 1
                continue
            position = match.start() + len(token.content)
            if token.single_word and _touches_word(text, match.start(), position, start, end):
                continue
            first, last = match.start(), position
            if token.lstrip:
                first = _end_without_space(text, done, first)
            if token.rstrip:
                last = position = _start_without_space(text, last, end)
            if done < first:
                yield None, done, first
            yield token, first, last
            done = last
        if done < end:
            yield None, done, end

    def _honored(self, text: str, start: int, end: int, owners: Owners) -> AddedToken | None:
        """Return the longest token here that whoever wrote it may write: any in the template's text, markup in all."""
        own = self._all.find(text, start, owners.end_of_templates(start, end))
        markup = self._markup.find(text, start, end)
        return markup if own is None or (markup is not None and len(markup.content) > len(own.content)) else own


def _touches_word(text: str, first: int, last: int, start: int, end: int) -> bool:
    return bool((first > start and re.match(r"\w", text[first - 1])) or (last < end and re.match(r"\w", text[last])))


def _end_without_space(text: str, start: int, end: int) -> int:
    while end > start and re.match(f"[{SPACE}]", text[end - 1]):
        end -= 1
    return end


def _start_without_space(text: str, start: int, end: int) -> int:
    while start < end and re.match(f"[{SPACE}]", text[start]):
        start += 1
    return start
