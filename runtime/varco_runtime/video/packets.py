"""When each frame of a video file is shown, found without decoding: the sorted times of packets are those of frames.

The number of frames that a container states is 0 in WebM, Matroska and transport streams, and wrong in others.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from varco_runtime.video.budget import Budget

NO_TIME = -(2**63)


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """The packets of a video stream that become frames which are shown.

    Args:
        times: When the frame of each is shown, in units of the stream's time base, rising; `NO_TIME` where a packet
            does not say.
        groups: The group of each: packets from one key frame to the next, counted from 0, in the file's order.
        key_times: When the key frame of each group is shown.
        is_reordered: Whether some frame is shown before one that stands in front of it in the file.
    """

    times: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int32]
    key_times: npt.NDArray[np.int64]
    is_reordered: bool

    def is_sound(self, decoder_reorders: bool) -> bool:
        """Return whether each packet has a time of its own, and that of its frame.

        AVI has no times: FFmpeg counts its packets in the file's order, which is not the one in which they are shown
        where the decoder reorders.
        """
        if decoder_reorders and not self.is_reordered:
            return False
        return bool(np.all(np.diff(self.times) > 0)) and NO_TIME not in self.times[:1]

    def groups_for(self, numbers: Sequence[int]) -> frozenset[int]:
        """Return the groups to decode for the frames of these numbers.

        A frame that is shown before the key frame of its group needs the groups in front of it (open GOP).
        """
        needed: set[int] = set()
        for number in numbers:
            first = last = int(self.groups[number])
            while first and self.key_times[first] > self.times[number]:
                first -= 1
            needed.update(range(first, last + 1))
        return frozenset(needed)


def index_packets(container: Any, stream: Any, budget: Budget) -> PacketIndex:
    """Read all packets of a stream once and return those that are shown.

    Args:
        container: The container, at its beginning.
        stream: One of its video streams.
        budget: What that may cost.

    Raises:
        VideoError: The packets are too many, or take too long to read.
    """
    times, groups, key_times = array("q"), array("i"), array("q")
    for group, packet in grouped_packets(container, stream, budget):
        time = packet.pts if packet.pts is not None else packet.dts
        time = NO_TIME if time is None else time
        if group == len(key_times):
            key_times.append(time)
        if group >= 0 and not packet.is_discard:  # an edit list cuts some off that later ones are predicted from
            times.append(time)
            groups.append(group)
    in_file = np.array(times, np.int64)
    order = np.argsort(in_file, kind="stable")
    return PacketIndex(
        times=in_file[order],
        groups=np.array(groups, np.int32)[order],
        key_times=np.array(key_times, np.int64),
        is_reordered=bool(np.any(np.diff(in_file) < 0)),
    )


def grouped_packets(container: Any, stream: Any, budget: Budget) -> Iterator[tuple[int, Any]]:
    """Yield each packet of a stream with its group, which is -1 in front of the first key frame.

    Args:
        container: The container, at its beginning.
        stream: One of its video streams.
        budget: What that may cost; packets of other streams are counted too.

    Raises:
        VideoError: The packets are too many, or take too long to read.
    """
    group = -1
    for count, packet in enumerate(container.demux(), 1):
        budget.check_packets(count)
        if packet.stream_index != stream.index or packet.size == 0:  # empty: the end
            continue
        group += packet.is_keyframe
        yield group, packet
