"""The log of the stub libraries, read section by section."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel by its C++ name, or a call of cuBLAS by its own.

    `sizes` are the blocks of the grid, or m, n and k of a product: its weights are `[m, k]`, its input has n rows.
    """

    name: str
    sizes: tuple[int, int, int]
    in_capture: bool


@dataclass(frozen=True, slots=True)
class Copy:
    """`direction` is `host to device`, say. A synchronous copy waits for what was asked for before."""

    direction: str
    num_bytes: int
    is_synchronous: bool
    in_capture: bool


@dataclass(frozen=True, slots=True)
class Allocation:
    """Memory taken, or given back where `is_free`, on the `device` or as pinned memory of the `host`."""

    place: str
    num_bytes: int
    is_free: bool
    in_capture: bool


@dataclass(slots=True)
class Section:
    """What was asked of CUDA between two marks."""

    launches: list[Launch] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    allocations: list[Allocation] = field(default_factory=list)
    synchronisations: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Calls that failed, as CUDA forbids them while a stream is captured."""
    captures: list[list[Launch]] = field(default_factory=list)
    """What a replay launches, for each graph that was captured."""
    num_replays: int = 0
    shared_keys: list[list[int]] = field(default_factory=list)
    """By capture, for each launch of Flash in parts: the number of keys that its splits share out among them."""

    def add(self, launch: Launch) -> None:
        self.launches.append(launch)
        if launch.in_capture:
            self.captures[-1].append(launch)


def read_log(path: Path) -> dict[str, Section]:
    """The sections by name, in their order, without what lies between them."""
    sections: dict[str, Section] = {}
    names: dict[str, str] = {}
    section = Section()
    for line in path.read_text().splitlines():
        kind, captures, *fields = line.split("\t")
        in_capture = captures == "1"
        match kind, fields:
            case "mark", [""]:
                section = Section()
            case "mark", [name]:
                assert name not in sections, f"two sections are named {name!r}"
                section = sections[name] = Section()
            case "name", [number, name]:
                names[number] = name
            case "kernel", [number, grid, _block, _shared_bytes]:
                x, y, z = map(int, grid.split(","))
                section.add(Launch(names[number], (x, y, z), in_capture))
            case "blas", [name, m, n, k]:
                section.add(Launch(name, (int(m), int(n), int(k)), in_capture))
            case "copy", [how, direction, num_bytes]:
                section.copies.append(Copy(direction, int(num_bytes), how == "synchronous", in_capture))
            case (("allocate" | "free"), [place, num_bytes]):
                section.allocations.append(Allocation(place, int(num_bytes), kind == "free", in_capture))
            case "wait", [what]:
                section.synchronisations.append(what)
            case "refused", [call]:
                section.refused.append(call)
            case "capture", ["begin"]:
                section.captures.append([])
                section.shared_keys.append([])
            case "keys", [count]:
                if in_capture:
                    section.shared_keys[-1].append(int(count))
            case "replay", _:
                section.num_replays += 1
            case ("capture", ["end"]) | (("fill" | "host function"), _):
                pass
            case _:
                raise ValueError(f"a line of the log that nobody wrote: {line!r}")
    return sections
