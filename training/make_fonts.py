"""Make the font subsets in `training/fonts/` from Debian's font packages (once; needs fontTools and those packages).

`python -m training.make_fonts`. Each subset holds the characters of `lexicon.py` and printable ASCII, nothing else, and
carries a new name, because the SIL Open Font License keeps the names "Nanum..." for unmodified files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.lexicon import CHARACTERS

DEBIAN = Path("/usr/share/fonts/truetype")
SOURCES = {  # our name -> Debian's file (package fonts-nanum or fonts-noto-core, both OFL-1.1)
    "gothic": "nanum/NanumGothic.ttf",
    "gothic-bold": "nanum/NanumGothicBold.ttf",
    "square-bold": "nanum/NanumSquareB.ttf",
    "sans": "noto/NotoSans-Regular.ttf",
    "sans-bold": "noto/NotoSans-Bold.ttf",
    "serif-bold": "noto/NotoSerif-Bold.ttf",
}


def make_subset(source: Path, target: Path, name: str) -> None:
    """Write the subset of one font, without hinting and layout tables, under its own name."""
    from fontTools import subset  # type: ignore[import-not-found, import-untyped, unused-ignore]

    options = subset.Options(hinting=False, layout_features=[], name_IDs=[0, 1, 2, 4, 6, 13, 14], notdef_outline=True)
    font: Any = subset.load_font(str(source), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=CHARACTERS + "".join(map(chr, range(32, 127))))
    subsetter.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 4, 6):
            record.string = f"VarcoTiny-{name}"
    subset.save_font(font, str(target), options)


def main() -> None:
    """Write every subset."""
    folder = Path(__file__).parent / "fonts"
    folder.mkdir(exist_ok=True)
    for name, file in SOURCES.items():
        make_subset(DEBIAN / file, folder / f"{name}.ttf", name)


if __name__ == "__main__":
    main()
