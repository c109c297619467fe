"""How long a process that died stays away, by a clock that a test moves."""

from __future__ import annotations

from varco_serve.supervisor.deaths import LONGEST_WAIT_S, MOST_DEATHS, WITHIN_S, Deaths


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_each_death_waits_longer_and_the_fifth_within_ten_minutes_is_the_last() -> None:
    clock = Clock()
    deaths = Deaths(clock)
    waits = []
    for _ in range(MOST_DEATHS - 1):
        clock.now_s += WITHIN_S / MOST_DEATHS
        wait_s = deaths.count()
        assert wait_s is not None
        waits.append(wait_s)
    assert waits == sorted(set(waits))
    assert waits[0] <= 0.5
    assert waits[-1] == LONGEST_WAIT_S
    clock.now_s += WITHIN_S / MOST_DEATHS
    assert deaths.count() is None


def test_deaths_long_ago_count_for_nothing() -> None:
    clock = Clock()
    deaths = Deaths(clock)
    first = deaths.count()
    for _ in range(3 * MOST_DEATHS):
        clock.now_s += WITHIN_S + 1
        assert deaths.count() == first
    for _ in range(MOST_DEATHS - 2):
        clock.now_s += 1
        assert deaths.count() is not None
    assert deaths.count() is None
