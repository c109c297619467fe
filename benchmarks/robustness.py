"""How well pictures, exports and bundles stand what a hostile file, a killed process and a full disk do to them.

    python benchmarks/robustness.py [--quick] [--seed 1]

- 10,000 mutated pictures of every usual format, mode and shape go through `load_picture` and `tile`: each ends as a
  picture or as an `ImageError` of one line, nothing is printed, and resident memory grows by at most 100 MB.
- An export is killed with SIGKILL at 50 points spread over everything it does to the disk, every second one while it
  overwrites a former bundle: nothing half-written can be loaded, and the next run removes what was left.
- The disk is full at 10 points of an export: one line, and nothing is left.
- Every byte of a bundle's small files and of its manifest is flipped (large files: at sampled positions), files are
  cut, lengthened, exchanged, and replaced by links, pipes and folders: each is refused.

Everything is drawn from `--seed`. Prints a table and ends with one JSON line; exit status 1 if anything did not hold.
A hard link is not among the links: it is the file itself, and its content is hashed like any other.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # exports are forked from this process, which must have one thread

import numpy as np
import PIL
from PIL import Image, features

from varco_runtime.bundle import Bundle, check_file, read_manifest
from varco_runtime.errors import BundleError, ExportError, ImageError
from varco_runtime.image import tile
from varco_runtime.picture import load_picture
from varco_runtime.schema import MANIFEST
from varco_runtime.settings import ImageSettings
from varco_runtime.verified import Remembered

MAX_GROWTH_BYTES = 100_000_000
SMALL_FILE_BYTES = 64 << 10
"""Every position of files up to this size is flipped; larger ones at `NUM_SAMPLED` positions and both ends."""
NUM_SAMPLED = 2000
EDGE_BYTES = 64

Report = dict[str, Any]


def main() -> int:
    options = _parser().parse_args()
    if options.pictures_worker:
        return _pictures_worker(options.seed, options.pictures_worker)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="robustness-") as name:
        folder = Path(name)
        os.environ["VARCO_EDGE_CACHE"] = str(folder / "cache")
        checkpoint, reference = _make(folder, options.seed)
        report: Report = {
            "benchmark": "robustness",
            "seed": options.seed,
            "machine": f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, "
            f"Pillow {PIL.__version__}",
            "pictures": _pictures(options.seed, 500 if options.quick else 10_000),
            "kills": _kills(checkpoint, reference, folder / "kills", 10 if options.quick else 50),
            "full_disks": _full_disks(checkpoint, reference, folder / "disks", 3 if options.quick else 10),
            "damage": _damage(reference, folder / "damage", options.seed, 97 if options.quick else 1),
        }
    report["wall_s"] = round(time.perf_counter() - started, 1)
    parts = [part for part in report.values() if isinstance(part, dict)]
    report["ok"] = not any(part["faults"] for part in parts)
    _print(report)
    return 0 if report["ok"] else 1


def _make(folder: Path, seed: int) -> tuple[Path, Path]:
    """A tiny checkpoint and its bundle."""
    from varco_export.tiny import TinyOptions, make_tiny

    checkpoint = make_tiny(folder / "checkpoint", TinyOptions(seed=seed))
    _export(checkpoint, folder / "reference")
    return checkpoint, folder / "reference"


class _Silent:
    @contextlib.contextmanager
    def component(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        yield lambda: None


def _export(checkpoint: Path, target: Path, overwrite: bool = False) -> None:
    from varco_export.export import ExportOptions, export

    export(checkpoint, target, ExportOptions(overwrite=overwrite), _Silent())


# --- pictures ---------------------------------------------------------------------------------------------------------

_GRIDS = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))
VARCO = ImageSettings(384, 14, _GRIDS, 9, (0.5,) * 3, (0.5,) * 3, 1 / 255)
SIZES = ((1, 1), (1, 400), (400, 1), (37, 23), (120, 90))


def _pictures(seed: int, count: int) -> Report:
    """Run the pictures in a process of its own, so that a crash is seen and memory is that of pictures alone."""
    command = [sys.executable, __file__, "--seed", str(seed), "--pictures-worker", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"count": count, "faults": [f"ended with status {done.returncode}: {done.stderr[-500:]}"]}
    report: Report = json.loads(done.stdout)
    if done.stderr:
        report["faults"].append(f"printed {done.stderr[:200]!r}")
    if report["growth_bytes"] > MAX_GROWTH_BYTES:
        report["faults"].append(f"resident memory grew by {report['growth_bytes']} bytes")
    return report


def _pictures_worker(seed: int, count: int) -> int:
    faulthandler.enable()
    originals = _originals(seed)
    faults: list[str] = []
    outcomes = {"original": 0, "decoded": 0, "refused": 0}
    for name, data in originals:  # also warms up decoders, resizers and the allocator
        if _try(data, name, faults) != "decoded":
            faults.append(f"{name} could not be opened unharmed")
        outcomes["original"] += 1
    before = largest = _resident_bytes()
    started = time.perf_counter()
    generator = np.random.default_rng([seed, 1])
    for index in range(count):
        name, data = originals[index % len(originals)]
        other = originals[int(generator.integers(len(originals)))][1]
        mutated, how = _mutate(data, other, generator)
        outcomes[_try(mutated, f"picture {index}, {name}, {how}", faults)] += 1
        if index % 50 == 49:
            largest = max(largest, _resident_bytes())
    report = {
        "count": count,
        "formats": len(originals),
        **outcomes,
        "growth_bytes": max(largest, _resident_bytes()) - before,
        "limit_bytes": MAX_GROWTH_BYTES,
        "peak_bytes": _status("VmHWM"),
        "wall_s": round(time.perf_counter() - started, 1),
        "faults": faults[:20],
    }
    print(json.dumps(report))
    return 0


def _try(data: bytes, name: str, faults: list[str]) -> str:
    """Open and tile; anything but a picture or one line of `ImageError` is a fault."""
    try:
        picture = load_picture(data)
        tiles = tile(picture, VARCO)
    except ImageError as error:
        if "\n" in str(error) or len(str(error)) > 400:
            faults.append(f"{name}: not one line: {str(error)[:300]!r}")
        return "refused"
    except Exception as error:
        faults.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        return "refused"
    if tiles.dtype != np.uint8 or tiles.shape[1:] != (3, 384, 384):
        faults.append(f"{name}: tiles {tiles.dtype} {tiles.shape}")
    return "decoded"


def _originals(seed: int) -> list[tuple[str, bytes]]:
    """Every usual format in its modes and in odd sizes, with what makes them odd: animation, EXIF, pages, 16 bits."""
    generator = np.random.default_rng([seed, 0])
    made: list[tuple[str, bytes]] = []
    for size in SIZES:
        rgb = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        deep = Image.fromarray(generator.integers(0, 65536, (size[1], size[0]), dtype=np.uint16))
        frames = [rgb.rotate(angle) for angle in (90, 180)]
        exif = Image.Exif()
        exif[0x0112] = 6
        variants: list[tuple[str, Image.Image, dict[str, Any]]] = [
            *(("PNG", rgb.convert(mode), {}) for mode in ("RGB", "RGBA", "LA", "L", "P", "1")),
            ("PNG", deep, {}),
            ("PNG", rgb, {"save_all": True, "append_images": frames}),
            *(("JPEG", rgb.convert(mode), {}) for mode in ("RGB", "L", "CMYK")),
            ("JPEG", rgb, {"progressive": True, "exif": exif}),
            ("GIF", rgb.convert("P"), {}),
            ("GIF", rgb, {"save_all": True, "append_images": frames}),
            *(("TIFF", rgb.convert(mode), {}) for mode in ("RGB", "CMYK", "P", "1", "LAB")),
            *(("TIFF", rgb, {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg")),
            ("TIFF", deep, {}),
            ("TIFF", rgb, {"save_all": True, "append_images": frames}),
            *(("BMP", rgb.convert(mode), {}) for mode in ("RGB", "P", "1")),
            ("ICO", rgb.convert("RGBA"), {"sizes": [(min(size[0], 255), min(size[1], 255))]}),
            *(("PPM", rgb.convert(mode), {}) for mode in ("RGB", "L", "1")),
            ("PPM", deep, {}),
            *((name, rgb, {}) for name in ("TGA", "PCX", "SGI", "DDS", "IM", "QOI")),
        ]
        if features.check("webp"):
            variants += [("WEBP", rgb, {}), ("WEBP", rgb.convert("RGBA"), {"lossless": True})]
            variants += [("WEBP", rgb, {"save_all": True, "append_images": frames})]
        if features.check("jpg_2000"):
            variants += [("JPEG2000", rgb, {})]
        if features.check("avif"):
            variants += [("AVIF", rgb, {})]
        for kind, image, settings in variants:
            file = io.BytesIO()
            image.save(file, kind, **settings)
            made.append((f"{kind} {image.mode} {size[0]}x{size[1]}", file.getvalue()))
    return made


def _mutate(data: bytes, other: bytes, generator: np.random.Generator) -> tuple[bytes, str]:
    """One of the ways files break or are broken: the bytes, and how."""
    raw = bytearray(data)
    size = len(raw)

    def spot(end: int = size) -> int:
        # Headers lie at the start: half of the places are there.
        return int(generator.integers(0, max(1, min(end, 64) if generator.random() < 0.5 else end)))

    how = str(generator.choice(["flip", "bytes", "cut", "number", "drop", "repeat", "insert", "zero", "splice"]))
    if how == "flip":
        for _ in range(int(generator.integers(1, 9))):
            raw[spot()] ^= 1 << int(generator.integers(8))
    elif how == "bytes":
        for _ in range(int(generator.integers(1, 33))):
            raw[spot()] = int(generator.integers(256))
    elif how == "cut":
        del raw[spot() :]
    elif how == "number":
        extreme = int(generator.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
        width = int(generator.choice([2, 4]))
        number = (extreme & (1 << 8 * width) - 1).to_bytes(width, "little" if generator.random() < 0.5 else "big")
        start = spot()
        raw[start : start + width] = number
    else:
        start, length = spot(), int(generator.integers(1, 65))
        if how == "drop":
            del raw[start : start + length]
        elif how == "repeat":
            raw[start:start] = raw[start : start + length] * int(generator.integers(1, 9))
        elif how == "insert":
            raw[start:start] = generator.bytes(length)
        elif how == "zero":
            raw[start : start + length] = bytes(len(raw[start : start + length]))
        else:
            raw[start:] = other[int(generator.integers(0, len(other))) :]
    return bytes(raw), how


def _resident_bytes() -> int:
    return _status("VmRSS")


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


# --- killed exports ---------------------------------------------------------------------------------------------------


def _kills(checkpoint: Path, reference: Path, folder: Path, count: int) -> Report:
    """Kill exports at `count` of the moments at which they touch the disk."""
    started = time.perf_counter()
    folder.mkdir()
    target = folder / "bundle"
    faults: list[str] = []
    moments = {overwrite: _moments(checkpoint, target, overwrite) for overwrite in (False, True)}
    complete = absent = former = 0
    for number in range(count):
        overwrite = number % 2 == 1
        point = 1 + round(number * (moments[overwrite] - 1) / max(1, count - 1))
        name = f"kill at {point} of {moments[overwrite]}{', overwriting' if overwrite else ''}"
        shutil.rmtree(folder)
        folder.mkdir()
        if overwrite:
            shutil.copytree(reference, target)
            (target / "former").touch()
        status = _forked(checkpoint, target, overwrite, kill_at=point)
        if status != -signal.SIGKILL:
            faults.append(f"{name}: the export ended with status {status}")
        for found in folder.iterdir():
            if found.is_dir() and _opens(found) and not _same(found, reference):
                faults.append(f"{name}: {found.name} can be loaded and is half-written")
        if not target.exists():
            absent += 1
        elif (target / "former").exists():
            former += 1
        else:
            complete += 1
        _reclaim(folder)
        left = sorted(os.listdir(folder))
        if left not in ([], ["bundle"]) or (overwrite and left != ["bundle"]):
            faults.append(f"{name}: after the next run there is {left}")
        if target.exists() and not _opens(target):
            faults.append(f"{name}: after the next run the bundle cannot be loaded")
        _export(checkpoint, target, overwrite=True)
        if not _same(target, reference) or sorted(os.listdir(folder)) != ["bundle"]:
            faults.append(f"{name}: the next export differs")
    return {
        "count": count,
        "moments": moments[False],
        "moments_overwriting": moments[True],
        "target_absent": absent,
        "target_former": former,
        "target_complete": complete,
        "wall_s": round(time.perf_counter() - started, 1),
        "faults": faults[:20],
    }


def _reclaim(folder: Path) -> None:
    """The next run, to another place in the same folder."""
    from varco_export.output import whole_folder

    with whole_folder(folder / "next"):
        pass
    (folder / "next").rmdir()


def _moments(checkpoint: Path, target: Path, overwrite: bool) -> int:
    """How many times an undisturbed export touches the disk."""
    counted = target.with_name("moments")
    status = _forked(checkpoint, target, overwrite, kill_at=0, counted=counted)
    assert status == 0, f"Bug: an undisturbed export ended with status {status}"
    return int(counted.read_text())


def _forked(checkpoint: Path, target: Path, overwrite: bool, kill_at: int, counted: Path | None = None) -> int:
    """Export in a child that kills itself before its `kill_at`-th write, open, rename, mkdir, unlink or lock."""
    import varco_export.export  # imported here, so that no child pays for it

    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        moments = _count_moments(target.parent, kill_at)
        varco_export.export.export(
            checkpoint, target, varco_export.export.ExportOptions(overwrite=overwrite), _Silent()
        )
        total = moments()
        if counted is not None:
            counted.write_text(str(total))
        status = 0
    finally:
        os._exit(status)


def _count_moments(folder: Path, kill_at: int) -> Callable[[], int]:
    """Count what this process does to `folder` from now on, and kill it at the moment asked for."""
    from varco_export.output import HashedFile

    moments = itertools.count(1)
    last = 0

    def step(before: Callable[[], object] = lambda: None) -> None:
        nonlocal last
        last = next(moments)
        if last == kill_at:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock"):
            step()

    whole_write = HashedFile.write

    def write(self: HashedFile, data: bytes | memoryview) -> int:
        step(lambda: whole_write(self, memoryview(data)[: len(data) // 2]))  # killed in the middle of a write
        return whole_write(self, data)

    HashedFile.write = write  # type: ignore[method-assign]
    sys.addaudithook(audit)
    return lambda: last


def _opens(folder: Path) -> bool:
    try:
        Bundle.open(folder, verify="full")
    except BundleError:
        return False
    return True


def _same(folder: Path, reference: Path) -> bool:
    names = [path.name for path in reference.iterdir()]
    return all((folder / name).read_bytes() == (reference / name).read_bytes() for name in names)


# --- full disks -------------------------------------------------------------------------------------------------------


def _full_disks(checkpoint: Path, reference: Path, folder: Path, count: int) -> Report:
    """Export onto disks that are too small, each a little larger than the last."""
    started = time.perf_counter()
    total = sum(path.stat().st_size for path in reference.iterdir())
    faults: list[str] = []
    kind = "tmpfs"
    for number in range(count):
        num_bytes = 4096 * 4 + int(total * 0.97 * number / count)
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            if not stack.enter_context(_small_disk(folder, num_bytes)):
                kind = "simulated"
                stack.enter_context(_simulated_disk(num_bytes))
            try:
                _export(checkpoint, folder / "bundle")
                faults.append(f"{num_bytes} bytes: the export did not fail")
            except ExportError as error:
                if "\n" in str(error) or "could not be written: No space left" not in str(error):
                    faults.append(f"{num_bytes} bytes: {str(error)[:200]!r}")
            except Exception as error:
                faults.append(f"{num_bytes} bytes: {type(error).__name__}: {error}")
            if left := os.listdir(folder):
                faults.append(f"{num_bytes} bytes: {left} is left")
        shutil.rmtree(folder)
    return {"count": count, "disk": kind, "wall_s": round(time.perf_counter() - started, 1), "faults": faults[:20]}


@contextlib.contextmanager
def _small_disk(folder: Path, num_bytes: int) -> Iterator[bool]:
    """A file system of that size at `folder`, where this user may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def _simulated_disk(num_bytes: int) -> Iterator[None]:
    """All hashed files together take `num_bytes`; what is over fails as a full disk does."""
    from varco_export import output

    left = num_bytes

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            nonlocal left
            if left == 0:
                raise OSError(28, "No space left on device")
            taken = min(left, len(data))
            left -= taken
            return super().write(data[:taken])

    output.open = lambda path, mode, buffering: File(path, mode)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del output.open  # type: ignore[attr-defined]


# --- damaged bundles --------------------------------------------------------------------------------------------------


def _damage(reference: Path, folder: Path, seed: int, stride: int) -> Report:
    """Flip, cut, exchange and replace the files of a bundle; `stride` thins the flips out."""
    started = time.perf_counter()
    shutil.copytree(reference, folder)
    faults: list[str] = []
    names = [MANIFEST, *sorted(read_manifest(folder).files)]
    generator = np.random.default_rng([seed, 2])
    flips = {name: _flips(folder, name, generator, stride, faults) for name in names}
    exhaustive = [name for name in names if flips[name] == (folder / name).stat().st_size]
    others = dict.fromkeys(("lengths", "swaps", "links", "others"), 0)

    def expect_refusal(kind: str, what: str) -> None:
        others[kind] += 1
        if _opens(folder):
            faults.append(f"{what} was not refused")

    for name in names:
        path = folder / name
        aside = folder.with_name("aside")
        size = path.stat().st_size
        for length in {0, 1, size // 2, size - 1, size + 1, *map(int, generator.integers(0, size, 16))}:
            shutil.copy(path, aside)
            os.truncate(path, length)
            expect_refusal("lengths", f"{name} of {length} bytes")
            os.replace(aside, path)
        os.rename(path, aside)
        expect_refusal("others", f"a missing {name}")
        for link in (aside, reference / name, "nowhere", name):
            path.symlink_to(link)
            expect_refusal("links", f"{name} as a link to {link}")
            path.unlink()
        os.mkfifo(path)
        expect_refusal("others", f"{name} as a pipe")
        path.unlink()
        path.mkdir()
        expect_refusal("others", f"{name} as a folder")
        path.rmdir()
        os.rename(aside, path)
    for one, other in itertools.combinations(names, 2):
        _exchange(folder / one, folder / other)
        expect_refusal("swaps", f"{one} and {other} exchanged")
        _exchange(folder / one, folder / other)
    if not _opens(folder) or not _same(folder, reference):
        faults.append("the restored bundle does not open")
    return {
        "flips": sum(flips.values()),
        "files": len(names),
        "every_byte_of": exhaustive,
        "sampled": {name: flips[name] for name in names if name not in exhaustive},
        **others,
        "wall_s": round(time.perf_counter() - started, 1),
        "faults": faults[:20],
    }


def _exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    for source, goal in ((one, aside), (other, one), (aside, other)):
        os.rename(source, goal)


def _flips(folder: Path, name: str, generator: np.random.Generator, stride: int, faults: list[str]) -> int:
    """Flip one bit of one byte at a time, in place; returns at how many positions."""
    path = folder / name
    raw = path.read_bytes()
    if len(raw) <= SMALL_FILE_BYTES:
        positions = range(0, len(raw), stride)
    else:
        ends = (*range(EDGE_BYTES), *range(len(raw) - EDGE_BYTES, len(raw)))
        sampled = map(int, generator.integers(0, len(raw), NUM_SAMPLED // stride))
        positions = sorted({*ends, *sampled})  # type: ignore[assignment]
    manifest, remembered = read_manifest(folder), Remembered({})
    with open(path, "r+b", buffering=0) as file:
        for position in positions:
            flipped = raw[position] ^ 1 << int(generator.integers(8))
            os.pwrite(file.fileno(), bytes([flipped]), position)
            try:
                if name == MANIFEST:
                    read_manifest(folder)
                else:
                    check_file(folder, name, manifest.files[name], remembered, full=True)
                faults.append(f"{name} with byte {position} as {flipped} was not refused")
            except BundleError:
                pass
            os.pwrite(file.fileno(), raw[position : position + 1], position)
    return len(positions)


# --- the table --------------------------------------------------------------------------------------------------------


def _print(report: Report) -> None:
    pictures, kills, disks, damage = (report[name] for name in ("pictures", "kills", "full_disks", "damage"))
    rows: list[tuple[str, str]] = []
    if "decoded" in pictures:
        rows += [
            ("mutated pictures", f"{pictures['count']:,} of {pictures['formats']} originals: "
             f"{pictures['decoded']:,} opened, {pictures['refused']:,} refused in one line"),
            ("resident memory", f"grew by {pictures['growth_bytes'] / 1e6:.1f} MB (limit "
             f"{pictures['limit_bytes'] / 1e6:.0f} MB), peak {pictures['peak_bytes'] / 1e6:.0f} MB"),
        ]  # fmt: skip
    ends = f"absent {kills['target_absent']}, former {kills['target_former']}, complete {kills['target_complete']}"
    moments = f"{kills['moments']} moments ({kills['moments_overwriting']} when overwriting)"
    rows += [
        ("killed exports", f"{kills['count']} of {moments}; the bundle was then {ends}, never half"),
        ("full disks", f"{disks['count']} ({disks['disk']}), each one line with nothing left"),
        ("flipped bytes", f"{damage['flips']:,} in {damage['files']} files; sampled: {damage['sampled']}"),
        ("other damage", f"{damage['lengths']} lengths, {damage['swaps']} swaps, {damage['links']} links, "
         f"{damage['others']} missing, pipes and folders"),
    ]  # fmt: skip
    for name, text in rows:
        print(f"  {name:<18}{text}")
    for part in ("pictures", "kills", "full_disks", "damage"):
        for fault in report[part]["faults"]:
            print(f"  FAULT in {part}: {fault}")
    print(f"  {'in all':<18}{'everything held' if report['ok'] else 'NOT everything held'}, {report['wall_s']:.0f} s")
    print(json.dumps(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure how well pictures, exports and bundles stand damage.")
    parser.add_argument("--quick", action="store_true", help="a twentieth of everything")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pictures-worker", type=int, metavar="COUNT", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
