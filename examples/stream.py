"""Print an answer while it is being written.

python examples/stream.py BUNDLE PICTURE "Describe this image."
"""

import sys

from varco_runtime import Varco


def main(bundle: str, picture: str, prompt: str) -> None:
    stream = Varco.load(bundle).stream(picture, prompt, max_new_tokens=128)
    for piece in stream:
        print(piece.text, end="", flush=True)
    print(f"\n[{stream.answer.finish_reason}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
