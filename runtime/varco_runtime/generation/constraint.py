"""What an answer may look like, token by token: an object that the sampler asks and tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from varco_runtime.errors import UsageError


@runtime_checkable
class Constraint(Protocol):
    """Which tokens may come next in one answer; an object is for one answer and not used again.

    An error that a method raises, at whatever token, ends that answer and no other. The methods are called from
    whichever thread takes the answer's next step, never from two at a time.
    """

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come next, in their order; none where there is a choice.

        Each of them is also what a call at its own place returns first, so that an answer is the same whether they are
        put into the model one by one or several at a time.
        """

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return the tokens of which the next is chosen, `[vocab]` bool, at least one; valid until the next call.

        An end token is among them where the answer may end. It is not called where `forced` returns tokens.
        """

    def accept(self, token: int) -> None:
        """Take the token that was chosen, an end token included."""


def checked_mask(allowed: Any, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return what a constraint allows, if it is a mask for logits of this shape and not empty.

    Raises:
        UsageError: It is neither.
    """
    if not isinstance(allowed, np.ndarray) or allowed.dtype != np.bool_ or allowed.shape != shape:
        what = f"{allowed.dtype} {allowed.shape}" if isinstance(allowed, np.ndarray) else type(allowed).__name__
        raise UsageError(
            f"The constraint allows {what}, expected a mask bool {shape}. Make it for this model's vocabulary."
        )
    if not allowed.any():
        raise UsageError("The constraint allows no token, expected at least an end token. Change the constraint.")
    return allowed
