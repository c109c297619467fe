"""Questions about several pictures and videos from Python: how they are given, and what answers say about them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.makers.inputs import noise_picture
from tests.makers.media import drawn_clip, drawn_frames
from varco_runtime import Varco, Video
from varco_runtime.answer.answer import Answer
from varco_runtime.conversation import Turn, user_turn
from varco_runtime.errors import ImageError, PromptError, UsageError, VarcoError, VideoError
from varco_runtime.markup.regions import Box, Region

A, B = noise_picture(0), noise_picture(1)
ARRAY = drawn_frames(12, 64, 48)


@pytest.fixture(scope="module")
def varco(media_bundle: Path) -> Varco:
    return Varco.load(media_bundle, threads=1)


def ask(varco: Varco, image: Any, prompt: str | None = "What is this?", **options: Any) -> Answer:
    return varco.ask(image, prompt, max_new_tokens=12, **options)


# --- how they are given -----------------------------------------------------------------------------------------------


def test_every_kind_of_picture_may_stand_in_a_list(varco: Varco, tmp_path: Path) -> None:
    path, png = tmp_path / "a.png", io.BytesIO()
    A.save(path)
    A.save(png, "PNG")
    kinds = [A, str(path), path, png.getvalue(), io.BytesIO(png.getvalue()), np.asarray(A)]
    answers = {ask(varco, [kind, B]).token_ids for kind in kinds}
    assert answers == {ask(varco, (A, B)).token_ids}


def test_parts_in_order_are_a_question(varco: Varco) -> None:
    answer = ask(varco, ["First:", A, "Second:", B, "Which is larger?"], None)
    assert [one.kind for one in answer.media] == ["image", "image"]
    joined = ask(varco, [A, B], "First:Second:Which is larger?")  # the template puts pictures first and joins texts
    assert answer.token_ids == joined.token_ids


def test_an_array_of_frames_is_a_video(varco: Varco) -> None:
    answer = ask(varco, Video(ARRAY, frames=4), "What happens?")
    (video,) = answer.media
    assert (video.kind, video.frames, video.num_tiles, video.num_tokens) == ("video", (0, 3, 7, 11), 4, 17)
    assert (video.size, answer.usage.image_tokens) == ((64, 48), 17)
    assert ask(varco, [Video(ARRAY, frames=4)], "What happens?").token_ids == answer.token_ids


def test_one_picture_in_a_list_is_that_picture(varco: Varco) -> None:
    assert ask(varco, [A]).token_ids == ask(varco, A).token_ids


def test_every_way_of_asking_takes_several(varco: Varco) -> None:
    two = [A, B]
    whole = ask(varco, two)
    pieces = varco.stream(two, "What is this?", max_new_tokens=12)
    assert "".join(piece.text for piece in pieces) == whole.text
    logits = varco.score(two, "What is this?", whole.token_ids)
    assert tuple(np.argmax(logits, axis=1)) == whole.token_ids
    for asked in (varco.ocr(two, max_new_tokens=4), varco.ground(two, "What?", max_new_tokens=4)):
        assert len(asked.media) == 2
    assert len(varco.chat(two).ask("What?", max_new_tokens=4).media) == 2


@pytest.mark.parametrize(("tiling", "several"), [("auto", False), ("grid", True), ("one", False)])
def test_the_tiling_may_be_asked_for(varco: Varco, tiling: str, several: bool) -> None:
    answer = ask(varco, [A, B], tiling=tiling)
    assert [one.num_tiles > 1 for one in answer.media] == [several, several]
    logits = varco.score([A, B], "What is this?", answer.token_ids, tiling=tiling)
    assert tuple(np.argmax(logits, axis=1)) == answer.token_ids


def test_a_picture_in_a_later_turn_of_a_chat_about_nothing(varco: Varco) -> None:
    chat = varco.chat()
    chat.ask("Hello", max_new_tokens=4)
    answer = chat.ask("What is this?", image=A, max_new_tokens=4)
    assert answer.media[0].num_tiles > 1  # it is the only picture of the conversation
    assert [one.num_tiles for one in chat.ask("And?", image=B, max_new_tokens=4).media] == [1, 1]


def test_an_error_leaves_a_chat_as_it_was(varco: Varco) -> None:
    chat = varco.chat(A)
    first = chat.ask("What?", max_new_tokens=4)
    with pytest.raises(ImageError):
        chat.ask("And this?", image=b"nothing")
    again = chat.ask("What?", max_new_tokens=4)
    assert again.media == first.media


REFUSED: dict[str, tuple[type[VarcoError], Callable[[Varco, Path], object]]] = {
    "names a file. Expected pathlib.Path(": (UsageError, lambda varco, path: varco.ask([str(path), A, "What?"])),
    "The list holds no text": (UsageError, lambda varco, path: varco.ask([A, B])),
    "The list of pictures is empty": (ImageError, lambda varco, path: varco.ask([], "What?")),
    "The text is of type NoneType": (PromptError, lambda varco, path: varco.ask(A)),
    "For the frames of a video give Video(array)": (ImageError, lambda varco, path: varco.ask(ARRAY, "What?")),
    "cannot be opened": (ImageError, lambda varco, path: varco.ask(["no.png", A], "What?")),
    "tiling='both' is unknown": (UsageError, lambda varco, path: varco.ask(A, "What?", tiling="both")),
    "ocr looks at a picture, got None": (ImageError, lambda varco, path: varco.ocr(None)),
    "The video's frames are [8, 8, 3], expected [58, 58, 3]": (
        VideoError,
        lambda varco, path: varco.ask(drawn_clip(2, 8), "What?"),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_asked_is_one_line(varco: Varco, tmp_path: Path, message: str) -> None:
    path = tmp_path / "a.png"
    A.save(path)
    error, call = REFUSED[message]
    with pytest.raises(error) as refused:
        call(varco, path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_bundle_for_one_picture_takes_more_only_untrained(tiny_bundle: Path) -> None:
    single = Varco.load(tiny_bundle, threads=1)
    with pytest.raises(ImageError, match=r"shows 2 pictures, this model was trained with 1 picture at a time"):
        ask(single, [A, B])
    assert len(ask(single, [A, B], untrained=True).media) == 2
    chat = single.chat(A)
    chat.ask("What?", max_new_tokens=2)
    with pytest.raises(ImageError, match="shows 2 pictures"):
        chat.ask("And this?", image=B)

    class Undecoded(Video):
        """A video that must not be decoded."""

        def tiles(self, edge: int) -> Any:
            raise AssertionError("decoded")

    with pytest.raises(VideoError, match="This bundle takes no video: its tokenizer has no id for <video>"):
        ask(single, Undecoded(ARRAY), untrained=True)


# --- what answers say -------------------------------------------------------------------------------------------------


def with_a_box(answer: Answer) -> Answer:
    region = Region("object", "thing", (Box(0.25, 0.25, 0.75, 0.75),), 0, 5)
    return Answer(
        answer.text, "thing", (), (region,), (), answer.finish_reason, answer.usage, answer.timings, answer.media
    )


def test_with_several_pictures_a_region_has_no_pixels_and_drawing_names_one(varco: Varco) -> None:
    answer = with_a_box(ask(varco, [A, B.resize((40, 40))]))
    document = answer.to_dict()
    assert (document["picture"], document["regions"][0]["boxes_px"]) == (None, [])
    assert (answer.picture, answer.size, len(answer.pictures)) == (None, None, 2)
    for call in (answer.draw, answer.to_coco, answer.to_hocr):
        with pytest.raises(UsageError, match=r"which of 2 pictures the boxes refer to.*\(picture=0\)"):
            call()
        with pytest.raises(UsageError, match="got picture=2, expected 0 to 1"):
            call(picture=2)
    assert answer.draw(picture=1).size == (40, 40)
    assert answer.to_coco(picture=1)[0]["image_size"] == [40, 40]
    assert "bbox 0 0 40 40" in answer.to_hocr(picture=1)


def test_with_one_picture_and_a_video_boxes_are_the_pictures(varco: Varco) -> None:
    answer = with_a_box(ask(varco, [Video(ARRAY, frames=2), A]))
    assert answer.size == A.size
    assert answer.draw().size == answer.draw(picture=0).size == A.size


def test_a_video_alone_has_nothing_to_draw_on(varco: Varco) -> None:
    answer = ask(varco, Video(ARRAY, frames=2))
    with pytest.raises(UsageError, match="this answer is to a video"):
        answer.draw()


def test_a_string_template_has_placeholders_where_the_parts_stand(varco: Varco) -> None:
    prompter = varco.session.prompter
    message = user_turn([A, "Two:", B, drawn_clip(1, 58)], None, varco.bundle.manifest).message
    assert prompter._as_string(message.parts) == "<image>\nTwo:<image><video>"
    apart = Turn("user", (*user_turn([A, B], "Compare.", varco.bundle.manifest).parts,)).message
    assert prompter._as_string(apart.parts) == "<image> <image>\nCompare."
