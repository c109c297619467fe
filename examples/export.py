"""Make an int4 bundle from a checkpoint, and ask it something. Needs the extra `export`.

python examples/export.py CHECKPOINT BUNDLE
"""

import sys
from pathlib import Path

from varco_export import ExportOptions, export_bundle
from varco_runtime import Varco


def main(checkpoint: str, bundle: str) -> None:
    export_bundle(checkpoint, Path(bundle), ExportOptions(decoder="int4"))
    print(Varco.load(bundle).ask(None, "대한민국의 수도는?", max_new_tokens=32).plain_text)


if __name__ == "__main__":
    main(*sys.argv[1:])
