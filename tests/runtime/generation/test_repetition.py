"""Answers that go round in a circle are ended, and answers that only look alike are not."""

from __future__ import annotations

from varco_runtime.generation.repetition import MAX_IDLE_TOKENS, LoopDetector
from varco_runtime.markup.regions import Box, Region


def region(text: str, left: float = 0.1) -> Region:
    return Region("text", text, (Box(left, 0.1, left + 0.1, 0.2),), 0, len(text))


def feed(detector: LoopDetector, text: str, left: float = 0.1, box_tokens: int = 20) -> list[str | None]:
    """Feed a region as a model writes it: its characters, tokens of its box, and the region at its end."""
    said = [detector.feed(character, ()) for character in text]
    return [*said, *(detector.feed("", ()) for _ in range(box_tokens)), detector.feed("", [region(text, left)])]


def test_one_region_three_times_running_is_a_loop() -> None:
    detector = LoopDetector()
    said = [*feed(detector, "EXIT"), *feed(detector, "EXIT"), *feed(detector, "EXIT")]
    assert said[:-1] == [None] * (len(said) - 1)
    assert said[-1] == "The answer was ended: it said 'EXIT' 3 times at one place."


def test_one_text_at_three_places_is_none() -> None:
    detector = LoopDetector()
    assert not any(any(feed(detector, "0", left=column / 100)) for column in range(80))


def test_a_region_between_breaks_the_run() -> None:
    detector = LoopDetector()
    assert not any(any(feed(detector, text, box_tokens=2)) for text in ("EXIT", "EXIT", "other", "EXIT", "EXIT"))


def test_two_regions_in_turn_end_after_the_tokens_without_new_text() -> None:
    detector = LoopDetector()
    said: list[str | None] = []
    while not any(said) and len(said) < 1000:
        said += feed(detector, "one thing") + feed(detector, "another")
    first = len("one thing") + 21 + len("another") + 21
    index = next(place for place, sentence in enumerate(said) if sentence)
    assert said[index] == "The answer was ended: its last 200 tokens held no new text."
    # the joints "thinganother" and back are new once each
    assert MAX_IDLE_TOKENS <= index < first + MAX_IDLE_TOKENS + 20


def test_characters_that_go_round_within_one_region_end() -> None:
    detector = LoopDetector()
    said = [detector.feed("ab", ()) for _ in range(MAX_IDLE_TOKENS + 10)]
    assert sum(sentence is not None for sentence in said) == 1
    assert said.index(next(filter(None, said))) == MAX_IDLE_TOKENS + 4  # "abababab" and "babababa" were new once


def test_new_words_go_on_however_long() -> None:
    detector = LoopDetector()
    assert not any(detector.feed(f"word{number} ", ()) for number in range(3000))
