"""What an ask says about its answer's form, as the runtime's constraint."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from varco_runtime import Varco
from varco_runtime.generation.constraint import Constraint

if TYPE_CHECKING:
    from varco_serve.grammar.grammars import Grammars


class Forms:
    """The model's grammars, made when the first is asked for: they take memory. Threads may share it.

    Args:
        varco: The model.
    """

    def __init__(self, varco: Varco) -> None:
        self._varco = varco
        self._making = threading.Lock()
        self._grammars: Grammars | None = None

    def constraint(self, grammar: dict[str, Any]) -> Constraint:
        """Return what holds one answer to a grammar. It blocks while that compiles.

        Args:
            grammar: As in `messages.Ask.grammar`.

        Raises:
            GrammarError: The grammar cannot be used.
        """
        with self._making:
            if self._grammars is None:
                from varco_serve.grammar.grammars import Grammars

                manifest = self._varco.bundle.manifest
                eos_token_ids, vocab_size = manifest.generation.eos_token_ids, manifest.model.vocab_size
                self._grammars = Grammars(self._varco.session.tokenizer, eos_token_ids, vocab_size)
        return self._grammars.constraint(grammar)
