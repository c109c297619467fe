"""The one tree of errors. Each message says what, got, expected and the next step.

    VarcoError
    ├── UsageError           an option or argument that cannot be honoured
    ├── InputError           what the user asks about
    │   ├── ImageError       a picture that cannot be opened, or is too large to be opened safely
    │   │   └── DamagedImageError one whose decoder gave up; what it raised is the `__context__`
    │   ├── VideoError       the same of a video
    │   ├── PromptError      a prompt that cannot be encoded, or a box outside 0..1
    │   └── ContextError     a prompt and an answer that do not fit the context
    ├── BundleError          a bundle that is missing, incomplete, altered or of another format
    ├── CheckpointError      a checkpoint that is missing, truncated, unknown or contradictory
    ├── ExportError          an export that cannot be done as asked, or could not be written
    ├── BackendError         a provider, device or library that is missing or fails
    │   └── ShortageError    a device with too little memory
    └── MissingExtraError    a command whose optional packages are not installed
        └── BrokenExtraError or are, and cannot be imported

The command line prints the message as one line and exits with 1 (2 for `UsageError`).
"""

from __future__ import annotations

from varco_runtime.extras import install_command


class VarcoError(Exception):
    """Base of every error this project raises on purpose."""


class UsageError(VarcoError):
    """An option or argument that cannot be honoured."""


class InputError(VarcoError):
    """The picture, prompt or conversation that the user asks about cannot be used."""


class ImageError(InputError):
    """A picture cannot be opened, or is too large to be opened safely."""


class DamagedImageError(ImageError):
    """A picture file cannot be decoded to its end: it is damaged or cut off, or the decoder ran out of memory."""


class VideoError(InputError):
    """A video cannot be opened, or is too large or too long to be read safely."""


class PromptError(InputError):
    """A prompt cannot be encoded, or a box lies outside 0..1."""


class ContextError(InputError):
    """A prompt and its answer do not fit into the context."""


class BundleError(VarcoError):
    """A bundle is missing, incomplete, altered or of another format."""


class CheckpointError(VarcoError):
    """A checkpoint is missing, truncated, unknown or contradictory."""


class ExportError(VarcoError):
    """An export cannot be done as asked, or could not be written."""


class BackendError(VarcoError):
    """A provider, device or library is missing or fails."""


class ShortageError(BackendError):
    """A device has too little memory."""


class MissingExtraError(VarcoError):
    """A command needs optional packages that are not installed.

    Args:
        what: The command or the part that needs them, as the message's subject.
        extra: The extra that brings them, a name from `[project.optional-dependencies]` of pyproject.toml.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}'. Install it with: {install_command(extra)}")
        self.extra = extra


class BrokenExtraError(MissingExtraError):
    """A command needs an optional package that is installed and cannot be imported: installing the extra is no help.

    Args:
        what: The command or the part that needs it, as the message's subject.
        extra: The extra that brings it.
        module: What cannot be imported.
        reason: What the import said, in one line.
    """

    def __init__(self, what: str, extra: str, module: str, reason: str) -> None:
        VarcoError.__init__(
            self,
            f"{what} needs {module}, which is installed but cannot be imported ({reason}). Install that package again, "
            "then run: varco doctor",
        )
        self.extra = extra


def first_line(error: object, otherwise: str | None = None) -> str:
    """Return the first line of what another library's error says.

    Args:
        error: The error, or its text.
        otherwise: Returned where it says nothing; by default the name of its type.
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else otherwise or type(error).__name__


def one_line(error: object, max_chars: int) -> str:
    """Return all of what an error or a text says in one line, cut after `max_chars` characters."""
    return " ".join(str(error).split())[:max_chars]
