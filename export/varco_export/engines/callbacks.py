"""Progress and output of a build, as TensorRT calls for them: classes whose base is known once the library is there."""

from __future__ import annotations

import threading
from typing import Any

from varco_export.progress import OnStep
from varco_export.writing.hashed_file import HashedFile
from varco_runtime.errors import ExportError


def build_monitor(module: Any, on_step: OnStep, cancelled: threading.Event) -> Any:
    """Return a monitor that reports each phase of several steps, and ends the build when it is cancelled."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            self.steps[phase] = num_steps
            on_step(phase, 0, num_steps)

        def step_complete(self, phase: str, step: int) -> bool:
            on_step(phase, step + 1, self.steps.get(phase, step + 1))
            return not cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            num_steps = self.steps.pop(phase, 1)
            on_step(phase, num_steps, num_steps)

    return Monitor()


def engine_writer(module: Any, file: HashedFile) -> Any:
    """Return a writer of the engine's pieces.

    An exception must not pass through the library, so it waits in `error`.
    """
    base: Any = getattr(module, "IStreamWriter", object)

    class Writer(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.error: ExportError | None = None

        def write(self, data: Any) -> int:
            try:
                return file.write(memoryview(data))
            except ExportError as error:
                self.error = error
                return 0

    return Writer()
