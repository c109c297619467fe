"""`varco run`: ask a bundle one question about a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varco_cli.arguments import PROVIDERS, THREADS_HELP, BundleArgument
from varco_cli.asked_media import Media
from varco_cli.console import is_terminal, note, write_document, write_text
from varco_cli.progress import HashProgress, QuestionProgress
from varco_cli.targets import check_target
from varco_runtime.errors import PromptError, UsageError, VarcoError
from varco_runtime.system.files import whole_file

if TYPE_CHECKING:
    from PIL import Image

    from varco_runtime.answer.answer import Answer
    from varco_runtime.options import Options
    from varco_runtime.stream import Stream
    from varco_runtime.varco import Varco

TASKS = ("chat", "ocr", "ground", "refer")
FORMATS = ("text", "json", "coco", "hocr")
PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

_QUESTION = "Question"
_ANSWER = "Answer"
_SAMPLING = "Choice of tokens (off by default: the likeliest token wins)"
_MACHINE = "Machine"


def _option(panel: str, explanation: str, metavar: str | None = None, name: str | None = None) -> Any:
    names = () if name is None else (name,)
    return typer.Option(*names, metavar=metavar, help=explanation, rich_help_panel=panel, show_default=False)


def run(
    context: typer.Context,
    bundle: BundleArgument,
    image: Annotated[
        str | None, typer.Argument(metavar="IMAGE", help="A picture file, or - for standard input.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The question, in quotes.", show_default=False)
    ] = None,
    images: Annotated[
        list[str] | None,
        _option(_QUESTION, "One of several pictures; repeatable. The argument is then the prompt.", "FILE", "--image"),
    ] = None,
    videos: Annotated[
        list[Path] | None,
        _option(_QUESTION, "A video file, or a folder of frames; repeatable, as --image.", "FILE", "--video"),
    ] = None,
    frames: Annotated[int | None, _option(_QUESTION, "Most frames of a video; 32 unless given.", "N")] = None,
    fps: Annotated[float | None, _option(_QUESTION, "Frames of each second, at most --frames.", "R")] = None,
    decode_limit: Annotated[
        float | None, _option(_QUESTION, "Seconds that reading a video may take; 120 unless given.", "S")
    ] = None,
    tiling: Annotated[
        str | None,
        _option(
            _QUESTION,
            "auto, the default, as trained: a grid for one picture, one padded tile for each of several; grid or one "
            "for all.",
            "auto|grid|one",
        ),
    ] = None,
    untrained: Annotated[
        bool, _option(_QUESTION, "Show more pictures than the model was trained with.", name="--untrained")
    ] = False,
    no_image: Annotated[
        bool, _option(_QUESTION, "Ask without a picture: varco run BUNDLE --no-image PROMPT", name="--no-image")
    ] = False,
    task: Annotated[
        str,
        _option(
            _QUESTION,
            "chat, the default, asks PROMPT as it is; ocr reads all text and takes no prompt; ground locates what the "
            "answer names; refer asks about --box.",
            "|".join(TASKS),
        ),
    ] = "chat",
    text: Annotated[
        str | None, _option(_QUESTION, "What to call the thing in --box; {object} in the prompt stands for it.", "T")
    ] = None,
    box: Annotated[
        str | None, _option(_QUESTION, "Left, top, right, bottom of the thing, each from 0 to 1.", "x1,y1,x2,y2")
    ] = None,
    system: Annotated[str | None, _option(_QUESTION, "A system message instead of the template's.", "S")] = None,
    long_side: Annotated[
        int | None, _option(_QUESTION, "Scale a smaller picture up to this, 0: not; for ocr as the bundle says.", "PX")
    ] = None,
    format_: Annotated[
        str, _option(_ANSWER, "What to print; text unless given.", "|".join(FORMATS), "--format")
    ] = "text",
    as_json: Annotated[bool, _option(_ANSWER, "Short for --format json.", name="--json")] = False,
    save: Annotated[Path | None, _option(_ANSWER, "Write the picture with the boxes painted on.", "OUT.png")] = None,
    stream: Annotated[
        bool | None,
        _option(
            _ANSWER, "Print the text as it comes, or at once; as it comes on a terminal.", name="--stream/--no-stream"
        ),
    ] = None,
    max_new_tokens: Annotated[int | None, _option(_ANSWER, "Longest answer; 1024 or, for ocr, all room.", "N")] = None,
    stop: Annotated[list[str] | None, _option(_ANSWER, "End the answer before this text; repeatable.", "S")] = None,
    temperature: Annotated[float | None, _option(_SAMPLING, "0 takes the likeliest token, more draws.", "T")] = None,
    top_k: Annotated[int | None, _option(_SAMPLING, "Draw from the K likeliest.", "K")] = None,
    top_p: Annotated[float | None, _option(_SAMPLING, "Draw from the likeliest that make up P.", "P")] = None,
    min_p: Annotated[float | None, _option(_SAMPLING, "Draw from those with P times the highest odds.", "P")] = None,
    repetition_penalty: Annotated[
        float | None, _option(_SAMPLING, "1 is none; the checkpoint's unless given.", "X")
    ] = None,
    seed: Annotated[int | None, _option(_SAMPLING, "Makes draws repeatable.", "N")] = None,
    provider: Annotated[str, _option(_MACHINE, "What to run on; auto unless given.", PROVIDERS)] = "auto",
    max_context: Annotated[
        int | None, _option(_MACHINE, "Tokens to make room for; fewer take less memory.", "N")
    ] = None,
    threads: Annotated[int | None, _option(_MACHINE, THREADS_HELP, "N")] = None,
    openvino_device: Annotated[
        str, _option(_MACHINE, "OpenVINO's device; auto, the CPU, unless given.", "auto|CPU|GPU|NPU")
    ] = "auto",
    precision: Annotated[
        str, _option(_MACHINE, "OpenVINO computes in what is fast there (auto), or exactly (fp32).", "auto|fp32")
    ] = "auto",
    kv_cache_precision: Annotated[
        str, _option(_MACHINE, "OpenVINO's format of keys and values.", "auto|u8|fp16|fp32")
    ] = "auto",
    no_speculate: Annotated[
        bool,
        _option(
            _MACHINE,
            "Guess no tokens ahead. Guesses make an answer faster; with int8 activations it may be another one, as "
            "good.",
            name="--no-speculate",
        ),
    ] = False,
) -> None:
    """Ask a bundle about a picture. The answer goes to standard output, notes to standard error."""
    if context.args:
        raise UsageError(
            f"One picture and a prompt are the arguments behind BUNDLE, got the extra argument {context.args[0]!r}. "
            "Put the prompt in quotes, or name several pictures: --image FILE --image FILE PROMPT. See: varco run "
            "--help"
        )
    shown = Media(tuple(images or ()), tuple(videos or ()), frames, fps, decode_limit)
    shown, prompt = shown.with_arguments(image, prompt, no_image)
    output = _output_format(format_, as_json, stream)
    _check_question(task, shown, prompt, text, box, no_image)
    _check_output(output, save, shown)
    options = _options(
        system=system,
        max_new_tokens=max_new_tokens,
        stop=stop or None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        speculate=False if no_speculate else None,
        tiling=tiling,
        untrained=untrained or None,
        long_side=long_side,
    )
    question = user_turn(task, prompt, text, box)
    # A picture or video that cannot be opened should say so before gigabytes are loaded.
    loaded = shown.load(bundle, untrained)
    varco = _load(bundle, provider, max_context, threads, (openvino_device, precision, kv_cache_precision))
    asked = varco.stream(loaded or None, question, **options)
    is_streamed = output == "text" and (is_terminal(sys.stdout) if stream is None else stream)
    with QuestionProgress() as progress:
        asked.progress = progress
        if is_streamed:
            _print_stream(asked, progress)
        answer = asked.run()
    if not is_streamed:
        _print_answer(answer, output, shown.name)
    if save is not None:
        save_picture(answer.draw(), save)
        note(f"{save} written: {len(answer.regions)} region{'' if len(answer.regions) == 1 else 's'}")
    if output != "json":
        _print_notes(answer, varco)


# --- what was asked ---------------------------------------------------------------------------------------------------


def _output_format(name: str, as_json: bool, stream: bool | None) -> str:
    if name not in FORMATS:
        raise UsageError(f"--format {name} is unknown. Expected one of: {', '.join(FORMATS)}.")
    if as_json and name not in ("text", "json"):
        raise UsageError(f"--json is short for --format json, got --format {name} as well. Leave one out.")
    output = "json" if as_json else name
    if stream and output != "text":
        raise UsageError(f"--stream prints text as it comes, a {output} document is printed whole. Leave out --stream.")
    return output


def _check_question(
    task: str, shown: Media, prompt: str | None, text: str | None, box: str | None, no_image: bool
) -> None:
    if task not in TASKS:
        raise UsageError(f"--task {task} is unknown. Expected one of: {', '.join(TASKS)}.")
    if no_image and task != "chat":
        raise UsageError(f"--task {task} is about a picture. Give a picture instead of --no-image.")
    shown.check(task, no_image)
    if task == "ocr" and prompt is not None:
        raise UsageError("--task ocr takes no prompt: it reads all text in the picture. Leave the prompt out.")
    if task == "refer" and (text is None or box is None):
        missing = "--text and --box" if text is box else "--text" if text is None else "--box"
        raise UsageError(f"--task refer needs {missing}. Expected for example: --text 'this' --box 0.1,0.2,0.5,0.6")
    if task != "refer" and (text is not None or box is not None):
        raise UsageError(f"--text and --box point at something, which --task {task} does not use. Add --task refer.")
    if prompt is None and task != "ocr":
        if no_image:
            raise UsageError("No prompt was given. Expected: varco run BUNDLE --no-image PROMPT")
        if shown.by_options:
            raise UsageError("No prompt was given. Expected: varco run BUNDLE --image FILE --image FILE PROMPT")
        raise UsageError(
            "No prompt was given. Expected: varco run BUNDLE IMAGE PROMPT; "
            "without a picture add --no-image, to read the text in one --task ocr."
        )
    for name, value in (("prompt", prompt), ("--text", text)):
        if value is not None and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise UsageError(f"The {name} is not valid UTF-8. Type it in a UTF-8 terminal.")


def _check_output(output: str, save: Path | None, shown: Media) -> None:
    got = shown.no_single_picture
    if got and output in ("coco", "hocr"):
        raise UsageError(f"--format {output} places regions on a picture, got {got}. Use --format text or json.")
    if save is None:
        return
    if got:
        raise UsageError(f"--save paints on the picture, got {got}. Leave out --save.")
    if save.suffix.lower() not in PICTURE_FORMATS:
        raise UsageError(f"--save {save} has an unknown ending. Expected one of: {', '.join(PICTURE_FORMATS)}.")
    check_target("--save", save)


def user_turn(task: str, prompt: str | None, text: str | None, box: str | None) -> str:
    """Return the text of the user's turn. Raises `UsageError`."""
    from varco_runtime.markup.questions import OCR_PROMPT, ground_prompt, refer_prompt

    if task == "ocr":
        return OCR_PROMPT
    assert prompt is not None, "Bug: _check_question lets no missing prompt through"
    if task == "ground":
        return ground_prompt(prompt)
    if task == "refer":
        try:
            return refer_prompt(prompt, text or "", _parse_box(box or ""))
        except PromptError as error:  # a box or text that an option gives is wrong usage, in whatever way it is wrong
            raise UsageError(str(error)) from None
    return prompt


def _parse_box(box: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in box.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4:
        raise UsageError(f"--box {box} is not four numbers. Expected x1,y1,x2,y2, as in 0.1,0.2,0.5,0.6")
    return numbers


def _options(**given: object) -> Options:
    """Return what the user gave; everything else is `Varco.ask`'s default."""
    options: Options = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
    return options


def _load(
    bundle: Path, provider: str, max_context: int | None, threads: int | None, openvino: tuple[str, str, str]
) -> Varco:
    from varco_runtime.bundle.opening import read_manifest
    from varco_runtime.varco import Varco

    sizes = {name: facts.size for name, facts in read_manifest(bundle).files.items()}
    with HashProgress(sizes) as progress:
        device, precision, kv_cache = openvino
        return Varco.load(
            bundle,
            provider,
            max_context,
            threads,
            progress=progress,
            openvino_device=device,
            precision=precision,
            kv_cache_precision=kv_cache,
        )


# --- what came back ---------------------------------------------------------------------------------------------------


def _print_stream(stream: Stream, progress: QuestionProgress) -> None:
    for piece in stream:
        progress.clear()
        write_text(piece.text)
    write_text("\n")


def _print_answer(answer: Answer, output: str, name: str) -> None:
    if output == "text":
        write_text(answer.text + "\n")
    elif output == "json":
        write_document(json.dumps(answer.to_dict(), ensure_ascii=False, indent=2))
    elif output == "coco":
        write_document(json.dumps(answer.to_coco(file_name=name), ensure_ascii=False, indent=2))
    else:
        write_document(answer.to_hocr(title=name))


def _print_notes(answer: Answer, varco: Varco) -> None:
    for warning in answer.warnings:
        note(f"note: {warning}")
    if answer.finish_reason == "length":
        usage, limit = answer.usage, varco.backend.max_context
        option = "--max-context" if usage.prompt_tokens + usage.completion_tokens >= limit else "--max-new-tokens"
        note(f"note: the answer was cut off at {usage.completion_tokens} tokens. See {option}.")
    note(timing_line(answer), faint=True)
    note(f"provider: {varco.provider}; {varco.backend.description}", faint=True)


def timing_line(answer: Answer) -> str:
    """Return an answer's times as one line.

    `prompt 2929 image + 24 text tokens; first token after 3.21 s; answer 12 tokens at 8.4/s; loaded in 1.02 s`
    """
    usage, timings = answer.usage, answer.timings
    image = f"{usage.image_tokens} image + " if usage.image_tokens else ""
    prompt = f"{image}{usage.prompt_tokens - usage.image_tokens} text tokens"
    rate = f" at {1 / timings.tpot_s:.1f}/s" if timings.tpot_s > 0 else ""
    plural = "" if usage.completion_tokens == 1 else "s"
    guessed = f" ({timings.accepted} of {timings.drafted} guesses right)" if timings.drafted else ""
    return (
        f"prompt {prompt}; first token after {timings.ttft_s:.2f} s; "
        f"answer {usage.completion_tokens} token{plural}{rate}{guessed}; loaded in {timings.load_s:.2f} s"
    )


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all; the ending of `path` names the format. Raises `VarcoError`."""
    try:
        with whole_file(path) as file:
            image.save(file, PICTURE_FORMATS[path.suffix.lower()])
    except (OSError, ValueError) as error:  # ValueError: sides longer than the format allows
        reason = getattr(error, "strerror", None) or error
        raise VarcoError(f"{path} could not be written: {reason}. Choose another place for the picture.") from None
