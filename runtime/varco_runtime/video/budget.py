"""What reading a video may cost: time and packets, for a video can be made to never end."""

from __future__ import annotations

import time
from collections.abc import Callable

from varco_runtime.errors import VideoError

MAX_PACKETS = 1_000_000
"""Four hours and a half at 60 frames per second."""


class Budget:
    """The time and the packets that are left for one video.

    Args:
        name: What messages call the video.
        limit_s: The time for finding and decoding its frames, in seconds.
        max_packets: The most packets that are read in one pass.
        clock: Returns seconds, rising.
    """

    def __init__(
        self,
        name: str,
        limit_s: float,
        max_packets: int = MAX_PACKETS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._limit_s = limit_s
        self._max_packets = max_packets
        self._clock = clock
        self._end_s = clock() + limit_s

    def check_time(self) -> None:
        """Check that time is left.

        Raises:
            VideoError: It is not.
        """
        if self._clock() > self._end_s:
            raise VideoError(
                f"{self.name} was not decoded within {self._limit_s:g} seconds, the limit for a video. Cut or scale it"
                " down, or raise the decode limit."
            )

    def check_packets(self, num_packets: int) -> None:
        """Check a number of packets, or of frames, and that time is left.

        Raises:
            VideoError: They are too many, or no time is left.
        """
        if num_packets > self._max_packets:
            raise VideoError(
                f"{self.name} has more than {self._max_packets:,} frames, the most that are read. Cut it into parts."
            )
        self.check_time()
