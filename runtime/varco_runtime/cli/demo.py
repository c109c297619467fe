"""`varco demo`: a sign that the project draws, a question about it, and the answer painted on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varco_runtime.cli.console import printable, write
from varco_runtime.cli.run import save_picture, timing_line
from varco_runtime.errors import VarcoError

if TYPE_CHECKING:
    from PIL import Image

    from varco_runtime.answer import Answer
    from varco_runtime.markup import Kind, Region

BUNDLE = Path(__file__).parent.parent / "demo_bundle"
SIGN_PX = 456
NUM_NONSENSE_TOKENS = 32


def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for the pictures.")] = Path("varco-demo"),
) -> None:
    """Read a sign with the small model that comes with the package, without a network."""
    if not BUNDLE.is_dir():
        raise VarcoError("This installation carries no demo bundle. In a checkout of the project, type: make demo")
    demonstrate(BUNDLE, out, can_read=True)


def demonstrate(bundle: Path, out: Path, can_read: bool) -> None:
    """Ask `bundle` about the sign; print answers and timings, write `sign.png` and `overlay.png` into `out`.

    `can_read` is false for random weights, which say nonsense: then one open question is asked, and `expected.png`
    shows what a trained model should find.
    """
    from varco_runtime.draw import draw
    from varco_runtime.varco import Varco

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VarcoError(f"{out} cannot be made: {error.strerror}. Choose another folder for the pictures.") from None
    sign, truth = draw_sign()
    save_picture(sign, out / "sign.png")
    varco = Varco.load(bundle)
    if can_read:
        circle = truth[2].boxes[0]
        colour = varco.refer(sign, "What colour is {object}?", "this", circle)
        answers = [
            _show("What is written there?", varco.ocr(sign)),
            _show("What is where?", varco.ground(sign, "Describe the image.")),
            _show("What colour is this (the place of the circle)?", colour),
        ]
    else:
        write("These weights are random numbers: the answer is nonsense by design, only the way to it is real.\n")
        question = "Describe this image."
        answers = [_show(question, varco.ask(sign, question, max_new_tokens=NUM_NONSENSE_TOKENS))]
        save_picture(draw(sign, truth), out / "expected.png")
    regions = [region for answer in answers for region in answer.regions]
    save_picture(draw(sign, regions), out / "overlay.png")
    write(f"\n{out / 'overlay.png'} shows the sign with the {len(regions)} regions of the answer{'s' * can_read}.\n")
    if not can_read:
        write(f"{out / 'expected.png'} shows what a trained model should find: the sign's own description.\n")


def _show(question: str, answer: Answer) -> Answer:
    write(f"\n{question}\n")
    write("".join(f"  {line}\n" for line in printable(answer.text).splitlines()) or "  (nothing)\n")
    for region in answer.regions:
        boxes = " and ".join(str(box) for box in region.pixels(SIGN_PX, SIGN_PX))
        write(f"  {region.kind} {printable(region.text)!r} at {boxes or 'no place'} px\n")
    write(f"  [{timing_line(answer)}]\n")
    return answer


def draw_sign() -> tuple[Image.Image, list[Region]]:
    """A sign with two words over a circle and a square, and what is where on it."""
    from PIL import Image, ImageDraw, ImageFont

    from varco_runtime.draw import FONT_FILE
    from varco_runtime.markup import Box, Region

    sign = Image.new("RGB", (SIGN_PX, SIGN_PX), (38, 60, 92))
    pen = ImageDraw.Draw(sign)
    pen.rectangle((10, 10, SIGN_PX - 11, SIGN_PX - 11), fill=(246, 243, 232))
    font_path = Path(__file__).parent.parent / "fonts" / FONT_FILE
    found: list[tuple[Kind, str, tuple[float, float, float, float]]] = []
    for word, size_px, place in (("EXIT", 64, (64, 48)), ("서울", 60, (256, 124))):
        font = ImageFont.truetype(str(font_path), size_px)
        pen.text(place, word, fill=(24, 28, 36), font=font)
        found.append(("text", word, pen.textbbox(place, word, font=font)))
    circle, square = (84, 276, 180, 372), (276, 268, 366, 358)
    pen.ellipse(circle, fill=(214, 32, 38))
    pen.rectangle(square, fill=(30, 80, 210))
    found += [("object", "red circle", circle), ("object", "blue square", square)]

    regions: list[Region] = []
    start = 0
    for kind, name, box in found:
        x1, y1, x2, y2 = (side / SIGN_PX for side in box)
        regions.append(Region(kind, name, (Box(x1, y1, x2, y2),), start, start + len(name)))
        start += len(name) + 1
    return sign, regions
