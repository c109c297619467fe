"""Read the text in a picture, print each word with its box in pixels, and paint the boxes.

python examples/ocr.py BUNDLE PICTURE OVERLAY.png
"""

import sys

from PIL import Image, ImageOps

from varco_runtime import Varco


def main(bundle: str, picture: str, overlay: str) -> None:
    with Image.open(picture) as opened:
        width, height = ImageOps.exif_transpose(opened).size  # boxes refer to the upright picture
    answer = Varco.load(bundle).ocr(picture)
    for region in answer.regions:
        for box in region.pixels(width, height):
            print(f"{region.text}\t{box}")
    answer.draw().save(overlay)


if __name__ == "__main__":
    main(*sys.argv[1:])
