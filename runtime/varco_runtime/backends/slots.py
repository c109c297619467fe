"""How many answers a model takes at once: what was asked for, and what memory holds.

A slot is a key/value cache of its own, as long as the context.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from varco_runtime.bundle.manifest import Manifest
from varco_runtime.errors import UsageError
from varco_runtime.system.memory import machine_memory

AUTO = "auto"
MAX_SLOTS = 64
"""A step of more rows costs what two smaller ones do."""
AUTO_SLOTS = 8
"""What `auto` takes at most: beyond it prefill and vision are the limit, which do not batch."""
_AUTO_SHARE = 0.5
"""The share of the free memory that `auto` leaves to caches; weights and work need the rest."""


@dataclass(frozen=True, slots=True)
class Slots:
    """A number of slots, and one line for people that says why; empty where the number was asked for."""

    number: int
    line: str = ""


def check_slots(slots: object) -> None:
    """Check what was asked for.

    Raises:
        UsageError: It is neither `auto` nor a whole number from 1 to `MAX_SLOTS`.
    """
    if isinstance(slots, str) and slots == AUTO:
        return
    if not isinstance(slots, Integral) or isinstance(slots, bool):
        raise UsageError(f"slots={slots!r} is no whole number. Expected 1 to {MAX_SLOTS}, or 'auto'.")
    if not 1 <= int(slots) <= MAX_SLOTS:
        raise UsageError(f"slots={slots} is out of range. Expected 1 to {MAX_SLOTS}, or 'auto'.")


def host_slots(
    manifest: Manifest, max_context: int, slots: int | str, takes_rows: bool, bytes_per_position: int | None = None
) -> Slots:
    """Return how many slots the host's memory is to hold.

    Args:
        manifest: The bundle's.
        max_context: Positions of a slot.
        slots: What was asked for, as `check_slots` lets it pass.
        takes_rows: Whether the decoder takes several sequences in one run.
        bytes_per_position: Of keys and values, the manifest's unless given.

    Raises:
        UsageError: More were asked for than the bundle or the memory allows.
    """
    if not takes_rows:
        return slot_of_earlier_export(slots)
    _, available = machine_memory()
    per_slot = (bytes_per_position or manifest.kv_bytes_per_token) * max_context
    if slots == AUTO:
        fitting = AUTO_SLOTS if available is None else int(available * _AUTO_SHARE) // per_slot
        number = min(AUTO_SLOTS, max(1, fitting))
        free = "" if available is None else f", {_mb(available)} are free"
        return Slots(number, f"{number} slots of {_mb(per_slot)} each, {_mb(number * per_slot)} in all{free}")
    number = int(slots)
    if number > 1 and available is not None and number * per_slot > available:
        raise UsageError(
            f"slots={number} needs {number} x {_mb(per_slot)} = {_mb(number * per_slot)} for keys and values, "
            f"{_mb(available)} are free: {max(1, available // per_slot)} fit. Load with fewer slots or a smaller "
            "max_context."
        )
    return Slots(number)


def slot_of_earlier_export(slots: int | str) -> Slots:
    """Return the one slot of a bundle whose decoder takes one sequence.

    Raises:
        UsageError: More were asked for.
    """
    if slots not in (AUTO, 1):
        raise UsageError(
            f"slots={slots} is too many: this bundle is of an earlier export, whose decoder takes one answer at a "
            "time. Export it again, or load it with slots=1."
        )
    return Slots(1, "1 slot: the bundle is of an earlier export, whose decoder takes one answer at a time")


def device_slots(slots: int | str, per_slot: int, others: int, free: int, name: str, limit: int = MAX_SLOTS) -> Slots:
    """Return how many slots a GPU's memory is to hold.

    Args:
        slots: What was asked for, as `check_slots` lets it pass.
        per_slot: Bytes of a slot.
        others: Bytes of all else: weights, buffers and work.
        free: Free bytes.
        name: The GPU's.
        limit: The most that `auto` may take, beside `AUTO_SLOTS`.

    Raises:
        UsageError: More than one were asked for, and more than fit. That one does not fit is found by others.
    """
    fitting = max(1, (free - others) // per_slot)
    if slots == AUTO:
        number = min(AUTO_SLOTS, limit, fitting)
        return Slots(
            number,
            f"{number} slot{'s' if number > 1 else ''} of {_mb(per_slot)} each, {_mb(number * per_slot)} in all beside "
            f"{_mb(others)} for everything else; {_mb(free)} are free on {name}",
        )
    number = int(slots)
    if number > 1 and number > fitting:
        raise UsageError(
            f"slots={number} needs {number} x {_mb(per_slot)} = {_mb(number * per_slot)} for keys and values beside "
            f"{_mb(others)} for everything else, {_mb(free)} are free on {name}: {fitting} fit. Load with fewer slots "
            "or a smaller max_context."
        )
    return Slots(number)


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
