"""Ask several questions about one picture, which is encoded once.

python examples/chat.py BUNDLE PICTURE "How many cats?" "What colour are they?"
"""

import sys

from varco_runtime import Varco


def main(bundle: str, picture: str, *questions: str) -> None:
    chat = Varco.load(bundle).chat(picture, system="Answer in one sentence.")
    for question in questions:
        answer = chat.ask(question, max_new_tokens=64)
        print(f"{question}\n  {answer.plain_text}  ({answer.usage.cached_tokens} tokens were in the cache)")


if __name__ == "__main__":
    main(*sys.argv[1:])
