"""Make the label font that ships with the runtime: `python tools/make_font.py` (needs fontTools).

Two fonts of Debian 12 go in, both under the SIL Open Font License 1.1, and one small font comes out:

    fonts-nanum 20200506-1        NanumBarunGothicBold.ttf   11,172 Hangul syllables, jamo, kana, punctuation, symbols
    fonts-noto-core 20201225-1    NotoSans-Bold.ttf          Latin, Greek, Cyrillic and their punctuation

"Nanum" is a Reserved Font Name, so a modified version must not be presented under it: the result is called
"Edge Label Sans". Hinting and layout tables go (labels are drawn by FreeType without them), and the file is WOFF 1
(zlib), which FreeType opens directly at a third of the size.
"""

from __future__ import annotations

import argparse
import tempfile
import unicodedata
from pathlib import Path

from fontTools import subset
from fontTools.merge import Merger
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont

HANGUL_FONT = Path("/usr/share/fonts/truetype/nanum/NanumBarunGothicBold.ttf")
LATIN_FONT = Path("/usr/share/fonts/truetype/noto/NotoSans-Bold.ttf")
OUT = Path(__file__).parent.parent / "runtime/varco_runtime/fonts/EdgeLabelSans-Bold.woff"

NAME = "Edge Label Sans"
NAMES = {
    0: "Copyright (c) 2013 NHN Corporation. Font designed by FONTRIX Inc. Latin: Copyright 2015 Google LLC.",
    1: NAME,
    2: "Bold",
    3: "varco-edge;EdgeLabelSans-Bold;1.0",
    4: f"{NAME} Bold",
    5: "Version 1.0",
    6: "EdgeLabelSans-Bold",
    13: "This Font Software is licensed under the SIL Open Font License, Version 1.1.",
    14: "https://openfontlicense.org",
}

LATIN = [(0x20, 0x7E), (0xA0, 0x17F), (0x218, 0x21B), (0x2C6, 0x2DD), (0x384, 0x3CE), (0x400, 0x45F), (0x490, 0x491)]
PUNCTUATION = [(0x2010, 0x2027), (0x2030, 0x203A), (0x20A0, 0x20BF), (0x2116, 0x2122), (0x2215, 0x2215)]
HANGUL = [(0xAC00, 0xD7A3), (0x3131, 0x318E)]
SYMBOLS = [(0x2000, 0x2BFF), (0x3000, 0x303F), (0x3041, 0x30FF), (0x3200, 0x33FF), (0xFF01, 0xFFE6)]


def expand(ranges: list[tuple[int, int]]) -> set[int]:
    return {code for first, last in ranges for code in range(first, last + 1)}


def with_ink(path: Path, codes: set[int]) -> set[int]:
    """The codes that the font really draws: Nanum maps thousands of characters to empty glyphs."""
    font = TTFont(path)
    cmap, glyphs = font.getBestCmap(), font["glyf"]
    blank = {0x20, 0xA0, 0x3000}
    return {code for code in codes if code in cmap and (code in blank or glyphs[cmap[code]].numberOfContours != 0)}


def cut(path: Path, codes: set[int], out: Path) -> Path:
    """Subset `path` to `codes`, without hinting and layout, into `out`."""
    options = subset.Options(hinting=False, layout_features=[], glyph_names=False, notdef_outline=True, name_IDs=[])
    options.drop_tables += ["FFTM", "GPOS", "GSUB", "GDEF", "BASE", "kern", "vhea", "vmtx", "TSI0", "TSI1", "TSI2"]
    font = TTFont(path)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=codes)
    subsetter.subset(font)
    font.save(out)
    return out


def conjoining_jamo() -> dict[int, int]:
    """Conjoining jamo U+1100..11C2 -> compatibility jamo of the same letter, which is how a lone one is drawn."""
    letters = {unicodedata.name(chr(code)).split()[-1]: code for code in range(0x3131, 0x3164)}
    jamo = expand([(0x1100, 0x1112), (0x1161, 0x1175), (0x11A8, 0x11C2)])
    last_words = {code: unicodedata.name(chr(code)).split()[-1] for code in jamo}
    return {code: letters[word] for code, word in last_words.items() if word in letters}


def draw_missing(font: TTFont) -> None:
    """Give `.notdef` an outlined box, so that a character the font lacks leaves a visible gap."""
    pen = TTGlyphPen(None)
    for left, low, right, high in ((90, 0, 710, 720), (640, 70, 160, 650)):  # the second runs backwards: a hole
        pen.moveTo((left, low))
        for point in ((left, high), (right, high), (right, low)):
            pen.lineTo(point)
        pen.closePath()
    font["glyf"][".notdef"] = pen.glyph()
    font["hmtx"][".notdef"] = (800, 90)


def build(out: Path) -> None:
    latin = with_ink(LATIN_FONT, expand(LATIN + PUNCTUATION))
    hangul = with_ink(HANGUL_FONT, expand(HANGUL + SYMBOLS)) - latin
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            cut(HANGUL_FONT, hangul, Path(folder, "hangul.ttf")),
            cut(LATIN_FONT, latin, Path(folder, "latin.ttf")),
        ]
        font = Merger().merge([str(part) for part in parts])
    for table in font["cmap"].tables:
        table.cmap.update(
            {code: table.cmap[letter] for code, letter in conjoining_jamo().items() if letter in table.cmap}
        )
    draw_missing(font)
    font["name"].names = []
    for name_id, text in NAMES.items():
        font["name"].setName(text, name_id, 3, 1, 0x409)
    font["OS/2"].fsType = 0  # embedding is allowed; Debian's README notes that Nanum's own bits are a mistake
    font["OS/2"].achVendID = "    "
    font["hhea"].ascent, font["hhea"].descent, font["hhea"].lineGap = 930, -250, 0  # the tallest letters are 0.92 high
    font["head"].created = font["head"].modified = 0  # the same bytes on every run
    font.recalcTimestamp = False
    font["post"].formatType = 3.0
    font.flavor = "woff"
    out.parent.mkdir(parents=True, exist_ok=True)
    font.save(out)
    print(f"{out}: {len(font.getBestCmap()):,} characters, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    build(parser.parse_args().out)
