"""What a request says about its answer's form -> a constraint for the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher

from varco_runtime.generation.constraint import Constraint
from varco_runtime.prompt.tokenizer import Tokenizer
from varco_serve.grammar.compiling import DEADLINE_S, Compiled
from varco_serve.grammar.constraint import GrammarConstraint
from varco_serve.grammar.errors import GrammarError
from varco_serve.grammar.json_schema import schema_grammar
from varco_serve.grammar.markup import markup_grammar
from varco_serve.grammar.vocabulary import ll_tokenizer


class Grammars:
    """The grammars of one model. Threads may share it; each takes some 30 to 80 MB and half a second to make.

    Args:
        tokenizer: The bundle's; of a `Varco` its `session.tokenizer`.
        eos_token_ids: What ends an answer, at least one: `bundle.manifest.generation.eos_token_ids`.
        vocab_size: The rows of the model's logits: `bundle.manifest.model.vocab_size`.
        deadline_s: Seconds that a grammar may take to compile.

    Raises:
        GrammarError: The model has no end token.

    Attributes:
        compiled: Those that were compiled already.
    """

    def __init__(
        self, tokenizer: Tokenizer, eos_token_ids: Sequence[int], vocab_size: int, deadline_s: float = DEADLINE_S
    ) -> None:
        if not eos_token_ids or not all(0 <= id_ < vocab_size for id_ in eos_token_ids):
            raise GrammarError(
                f"The model's end tokens are {list(eos_token_ids)} of {vocab_size} rows, expected some within them: "
                "without one no grammar comes to an end. Ask without a grammar."
            )
        self._token_ids = tokenizer.added_token_ids
        self._eos_token_ids = tuple(eos_token_ids)
        self._vocab_size = vocab_size
        self.compiled = Compiled(ll_tokenizer(tokenizer, self._eos_token_ids, vocab_size), deadline_s)

    def constraint(self, grammar: Mapping[str, Any]) -> Constraint:
        """Return what holds one answer to a grammar. It blocks while the grammar compiles, up to the deadline.

        Args:
            grammar: As in `messages.Ask.grammar`.

        Raises:
            GrammarError: The grammar is unsupported, too large, or too slow to compile, in one line.
        """
        text = self._text(grammar)
        matcher = self.compiled.matcher(text)
        return GrammarConstraint(matcher, self._eos_token_ids, self._vocab_size, lambda: self.compiled.anew(text))

    def _text(self, grammar: Mapping[str, Any]) -> str:
        """Return llguidance's text of a grammar."""
        kind = grammar.get("kind")
        if kind == "json_schema":
            return schema_grammar(grammar.get("schema"))
        if kind == "json_object":
            return schema_grammar({"type": "object"})
        if kind == "markup":
            text: str = LLMatcher.grammar_from_lark(markup_grammar(str(grammar.get("task")), self._token_ids))
            return text
        raise GrammarError(
            f"A grammar of kind {str(kind)[:40]!r} is asked for, expected json_schema, json_object or markup. Name one."
        )
