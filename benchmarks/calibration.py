"""A calibration folder of drawn pictures: `varco quantize` takes it, answers included.

    python -m benchmarks.calibration FOLDER --pictures 64

The pictures come from seeds of their own, which neither training nor the held-out pictures draw from. Each is asked
what training asks about such a picture, and answered as training teaches.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from training.pictures import HELD_OUT, draw
from training.tasks import chat, tasks

FIRST_SEED = HELD_OUT - (1 << 20)


def make_calibration(folder: Path, num_pictures: int) -> Path:
    """Draw the pictures and write calibration.jsonl beside them."""
    folder.mkdir(parents=True)
    lines: list[str] = []
    for number in range(num_pictures):
        picture = draw(FIRST_SEED + number)
        name = f"{number:04}.png"
        picture.image.save(folder / name)
        rng = random.Random(number)
        for task in [*tasks(picture, rng), chat(picture, rng)]:
            fields = {"image": name, "prompt": task.question, "answer": task.text}
            lines.append(json.dumps(fields, ensure_ascii=False))
    (folder / "calibration.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw a calibration folder for varco quantize.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=64, metavar="N")
    given = parser.parse_args(arguments)
    if given.folder.exists():
        parser.error(f"{given.folder} exists already. Choose another folder or remove it.")
    print(make_calibration(given.folder, given.pictures))


if __name__ == "__main__":
    main()
