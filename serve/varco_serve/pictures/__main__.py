"""`python -m varco_serve.pictures FD`: the picture process, at the other end of an inherited socket."""

from __future__ import annotations

import os
import sys

# Before numpy: a thread for each of many cores takes more address space than the process may have.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

from varco_serve.pictures.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
