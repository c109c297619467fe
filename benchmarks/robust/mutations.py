"""Picture files of every kind, and the ways in which files break or are broken."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, features

SIZES = ((1, 1), (1, 400), (400, 1), (37, 23), (120, 90))


def originals(seed: int) -> list[tuple[str, bytes]]:
    """Return the name and the bytes of pictures in every format that is read, in its modes and in odd sizes.

    With what makes them odd: frames, EXIF, depth.

    Args:
        seed: What their pixels are drawn from.
    """
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


def mutate(data: bytes, other: bytes, generator: np.random.Generator) -> tuple[bytes, str]:
    """Return a file as it breaks or is broken, and how that was done.

    Args:
        data: The file.
        other: Another one, whose end may follow this one's beginning.
        generator: What everything is drawn from.
    """
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
