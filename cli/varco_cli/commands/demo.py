"""`varco demo`: a sign that the project draws, a question about it, and the answer painted on."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import varco_runtime
from varco_cli.commands.run import save_picture, timing_line, user_turn
from varco_cli.console import printable, write
from varco_runtime.errors import VarcoError

if TYPE_CHECKING:
    from PIL import Image

    from varco_runtime.answer.answer import Answer
    from varco_runtime.markup.regions import Kind, Region
    from varco_runtime.varco import Varco

BUNDLE = Path(varco_runtime.__file__).parent / "demo_bundle"
SIGN_PX = 456
NUM_NONSENSE_TOKENS, NUM_WARM_UP_TOKENS = 32, 8


def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for the pictures.")] = Path("varco-demo"),
) -> None:
    """Read a sign with the small model that comes with the package, without a network."""
    if not BUNDLE.is_dir():
        raise VarcoError("This installation carries no demo bundle. In a checkout of the project, type: make demo")
    demonstrate(BUNDLE, out, can_read=True)


def demonstrate(bundle: Path, out: Path, can_read: bool) -> None:
    """Ask `bundle` about the sign; print commands, answers and timings, write `sign.png` and `overlay.png` into `out`.

    Args:
        bundle: The bundle's folder.
        out: The folder to write into, made if it is missing.
        can_read: False for random weights, which say nonsense: then one open question is asked, and `expected.png`
            shows what a trained model should find.

    Raises:
        VarcoError: The bundle cannot be loaded, or the pictures cannot be written.
    """
    from PIL import Image

    from varco_runtime.answer.draw import draw
    from varco_runtime.varco import Varco

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VarcoError(f"{out} cannot be made: {error.strerror}. Choose another folder for the pictures.") from None
    sign, truth = draw_sign()
    picture = out / "sign.png"
    save_picture(sign, picture)
    varco = Varco.load(bundle)
    circle = truth[2].boxes[0]
    questions = _questions(",".join(f"{side:.3f}" for side in (circle.x1, circle.y1, circle.x2, circle.y2)))
    if not can_read:
        write("These weights are random numbers: the answer is nonsense by design, only the way to it is real.\n")
        questions = [_Question("chat", "Describe this image.", max_new_tokens=NUM_NONSENSE_TOKENS)]
        save_picture(draw(sign, truth), out / "expected.png")
    # What runs for the first time is slow, whatever it is asked: another picture pays for that.
    grey = Image.new("RGB", sign.size, (128, 128, 128))
    for question in questions:
        question.ask(varco, grey, NUM_WARM_UP_TOKENS)
    answers = [_show(question.command(bundle, picture), question.ask(varco, sign)) for question in questions]
    regions = [region for answer in answers for region in answer.regions]
    save_picture(draw(sign, regions), out / "overlay.png")
    write(f"\n{out / 'overlay.png'} shows the sign with the {len(regions)} regions of the answer{'s' * can_read}.\n")
    if can_read:
        write("Later questions about a picture are answered sooner: it is encoded once.\n")
    else:
        write(f"{out / 'expected.png'} shows what a trained model should find: the sign's own description.\n")
    write(f"Does this machine compute what it should? {_program()} verify {shlex.quote(_short(bundle))} --numerics\n")


@dataclass(frozen=True, slots=True)
class _Question:
    """One question to `varco run`, so that the command shown and the question asked are one; `box` is its `--box`."""

    task: str
    prompt: str | None = None
    text: str | None = None
    box: str | None = None
    max_new_tokens: int | None = None

    def command(self, bundle: Path, picture: Path) -> str:
        """Return the command that asks the same about the saved picture."""
        given = [] if self.prompt is None else [self.prompt]
        given += [] if self.task == "chat" else ["--task", self.task]
        options = (("--text", self.text), ("--box", self.box), ("--max-new-tokens", self.max_new_tokens))
        given += [part for name, value in options if value is not None for part in (name, str(value))]
        return f"{_program()} run {shlex.join([_short(bundle), _short(picture), *given])}"

    def ask(self, varco: Varco, picture: Image.Image, max_new_tokens: int | None = None) -> Answer:
        """Ask about `picture`, for at most `max_new_tokens` if that is given."""
        limit = max_new_tokens or self.max_new_tokens
        turn = user_turn(self.task, self.prompt, self.text, self.box)
        return varco.ask(picture, turn) if limit is None else varco.ask(picture, turn, max_new_tokens=limit)


def _questions(circle: str) -> list[_Question]:
    """Return the questions for a model that reads; `circle` is the circle's box."""
    return [
        _Question("ocr"),
        _Question("ground", "Describe the image."),
        _Question("refer", "What colour is {object}?", "this", circle),
    ]


def _program() -> str:
    """Return what a shell calls `varco`: by name, or the script beside this Python where no folder of PATH holds it."""
    script = Path(sys.executable).with_name("varco")
    if shutil.which("varco") is not None or not script.is_file():
        return "varco"
    return shlex.quote(_short(script))


def _short(path: Path) -> str:
    """Return the path as typed from the current folder, where it lies in that."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _show(command: str, answer: Answer) -> Answer:
    write(f"\n$ {command}\n")
    write("".join(f"  {line}\n" for line in printable(answer.text).splitlines()) or "  (nothing)\n")
    for region in answer.regions:
        boxes = " and ".join(str(box) for box in region.pixels(SIGN_PX, SIGN_PX))
        write(f"  {region.kind} {printable(region.text)!r} at {boxes or 'no place'} px\n")
    write(f"  [{timing_line(answer)}]\n")
    return answer


def draw_sign() -> tuple[Image.Image, list[Region]]:
    """Return a sign with two words over a circle and a square, and what is where on it.

    The small model is right about it by a margin: in fp32 and in int8, and with everything moved by up to nine pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    from varco_runtime.answer.draw import FONT_FILE
    from varco_runtime.markup.regions import Box, Region

    sign = Image.new("RGB", (SIGN_PX, SIGN_PX), (38, 60, 92))
    pen = ImageDraw.Draw(sign)
    pen.rectangle((10, 10, SIGN_PX - 11, SIGN_PX - 11), fill=(246, 243, 232))
    font_path = Path(varco_runtime.__file__).parent / "fonts" / FONT_FILE
    drawn: list[tuple[Kind, str, tuple[float, float, float, float]]] = []
    for word, size_px, place in (("EXIT", 64, (64, 44)), ("서울", 60, (240, 101))):
        font = ImageFont.truetype(str(font_path), size_px)
        pen.text(place, word, fill=(24, 28, 36), font=font)
        drawn.append(("text", word, pen.textbbox(place, word, font=font)))
    circle, square = (48, 294, 128, 374), (278, 317, 348, 387)
    pen.ellipse(circle, fill=(214, 32, 38))
    pen.rectangle(square, fill=(30, 80, 210))
    drawn += [("object", "red circle", circle), ("object", "blue square", square)]

    regions: list[Region] = []
    start = 0
    for kind, name, box in drawn:
        x1, y1, x2, y2 = (side / SIGN_PX for side in box)
        regions.append(Region(kind, name, (Box(x1, y1, x2, y2),), start, start + len(name)))
        start += len(name) + 1
    return sign, regions
