"""Ask a running server with OpenAI's package: read a picture's text as it comes, with the place of every word.

varco serve BUNDLE
python examples/ask_server.py http://127.0.0.1:8000/v1 PICTURE.png

The same with curl, in one document:

curl --data-binary @PICTURE.png -H 'Content-Type: image/png' http://127.0.0.1:8000/v1/ocr
"""

import base64
import mimetypes
import sys
from pathlib import Path

from openai import OpenAI


def main(base_url: str, picture: str, prompt: str = "<ocr>", api_key: str = "none") -> None:
    media_type = mimetypes.guess_type(picture)[0] or "image/png"
    url = f"data:{media_type};base64,{base64.b64encode(Path(picture).read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
    regions = []
    with OpenAI(base_url=base_url, api_key=api_key) as client:
        stream = client.chat.completions.create(
            model="varco",
            messages=[{"role": "user", "content": content}],
            max_tokens=512,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
                regions += getattr(choice, "varco", {}).get("regions", [])  # what OpenAI has no place for
            usage = chunk.usage
    print()
    for region in regions:
        print(f"{region['kind']} {region['text']!r} at {region['boxes_px']}")
    print(f"{usage.prompt_tokens} tokens asked, {usage.completion_tokens} answered")


if __name__ == "__main__":
    main(*sys.argv[1:])
