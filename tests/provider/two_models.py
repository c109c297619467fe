"""One model captures on a thread while another answers: python -m tests.provider.two_models STUBS BUNDLE

Exits with 1 and the failures on stderr, if there are any.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np

from tests.provider.stub_libraries import load
from varco_runtime.backend import MAX_STEP_TOKENS, PromptInputs
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.bundle.opening import Bundle
from varco_runtime.errors import BackendError


def main(stubs: Path, bundle: Path) -> int:
    load(stubs)
    capturing, answering = (CudaBackend(Bundle.open(bundle)) for _ in range(2))
    failures: list[str] = []

    def capture() -> None:
        """Every length of step anew, since this thread has captured nothing."""
        try:
            for count in range(1, MAX_STEP_TOKENS + 1):
                capturing.decode_greedy_steps([1] * count, 60)
        except BackendError as error:
            failures.append(f"capturing: {error}")

    prompt = PromptInputs(np.arange(50, dtype=np.int64), Bundle.open(bundle).manifest.prompt.image_token_id, None)
    thread = threading.Thread(target=capture)
    thread.start()
    try:
        while thread.is_alive():
            answering.prefill(prompt, 0)
    except BackendError as error:
        failures.append(f"answering: {error}")
    thread.join()
    print("\n".join(failures), file=sys.stderr)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
