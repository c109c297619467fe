"""Mutated pictures through `load_picture` and `tile`, in a process of its own, which is this file run as a module."""

from __future__ import annotations

import faulthandler
import io
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import psutil
from PIL import Image, features

from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import ImageError
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.tiles import tile
from varco_runtime.system.memory import peak_memory_bytes

MAX_GROWTH_BYTES = 100_000_000
_GRIDS = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))
VARCO = ImageSettings(384, 14, _GRIDS, 9, (0.5,) * 3, (0.5,) * 3, 1 / 255)
SIZES = ((1, 1), (1, 400), (400, 1), (37, 23), (120, 90))


def mutated_pictures(seed: int, count: int) -> dict[str, Any]:
    """Run the pictures in a process of its own, so that a crash is seen and memory is that of pictures alone."""
    command = [sys.executable, "-m", "benchmarks.robust.pictures", str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"count": count, "faults": [f"ended with status {done.returncode}: {done.stderr[-500:]}"]}
    report: dict[str, Any] = json.loads(done.stdout)
    if done.stderr:
        report["faults"].append(f"printed {done.stderr[:200]!r}")
    if report["growth_bytes"] > MAX_GROWTH_BYTES:
        report["faults"].append(f"resident memory grew by {report['growth_bytes']} bytes")
    return report


def _work(seed: int, count: int) -> None:
    """Open `count` mutated pictures and print what became of them."""
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
        "peak_bytes": peak_memory_bytes(),
        "wall_s": round(time.perf_counter() - started, 1),
        "faults": faults[:20],
    }
    print(json.dumps(report))


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
    """Every format that is read, in its modes and in odd sizes, with what makes it odd: frames, EXIF, depth."""
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
            ("TIFF", deep.convert("F"), {"compression": "tiff_deflate"}),
            ("TIFF", rgb, {"big_tiff": True, "exif": exif}),
            ("TIFF", rgb, {"save_all": True, "append_images": frames}),
            *(("BMP", rgb.convert(mode), {}) for mode in ("RGB", "P", "1")),
            ("MPO", rgb, {"save_all": True, "append_images": frames}),
        ]
        if features.check("webp"):
            variants += [("WEBP", rgb, {}), ("WEBP", rgb.convert("RGBA"), {"lossless": True})]
            variants += [("WEBP", rgb, {"save_all": True, "append_images": frames})]
        if features.check("jpg_2000"):
            variants += [("JPEG2000", rgb.convert(mode), {}) for mode in ("RGB", "RGBA", "L")]
            variants += [("JPEG2000", deep, {"no_jp2": True}), ("JPEG2000", rgb, {"tile_size": (64, 64)})]
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
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    _work(*map(int, sys.argv[1:]))
