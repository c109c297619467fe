"""`python -m varco_serve.pictures FD`: the picture process, at the other end of an inherited socket."""

from __future__ import annotations

import sys

from varco_serve.pictures.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
