"""Ask one question about a picture, and read what comes back.

python examples/ask.py BUNDLE PICTURE "Describe this image."
"""

import sys

from varco_runtime import Varco


def main(bundle: str, picture: str, prompt: str) -> None:
    varco = Varco.load(bundle)
    answer = varco.ask(picture, prompt, max_new_tokens=128)
    print(answer.plain_text)
    print(
        f"{answer.usage.prompt_tokens} tokens asked, {answer.usage.completion_tokens} answered: {answer.finish_reason}"
    )
    print(f"first token after {answer.timings.ttft_s:.2f} s, then {answer.timings.tpot_s * 1000:.0f} ms each")


if __name__ == "__main__":
    main(*sys.argv[1:])
