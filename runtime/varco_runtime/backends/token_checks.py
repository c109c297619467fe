"""What a device may look up, and what it may choose: it does both without a word, whatever the number."""

from __future__ import annotations

from varco_runtime.errors import BackendError


def check_tokens(least: int, greatest: int, vocab_size: int) -> None:
    """Assert that all token ids from `least` to `greatest` have a row in the table."""
    assert 0 <= least <= greatest < vocab_size, f"Bug: token ids {least}..{greatest} of {vocab_size}"


def check_chosen(token_id: int, vocab_size: int) -> None:
    """Check that a token which the device chose exists.

    Raises:
        BackendError: It is none of the vocabulary's.
    """
    if not 0 <= token_id < vocab_size:
        raise BackendError(f"The decoder chose token {token_id}, which does not exist. Run 'varco verify BUNDLE'.")


def not_finite(position: int, advice: str) -> BackendError:
    """Return the error of a step whose logits are not finite; `advice` is its next step (`Manifest`)."""
    return BackendError(f"The decoder gave logits that are not finite at position {position}. {advice}")
