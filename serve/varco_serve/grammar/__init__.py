"""What an answer must look like, and which tokens may come next."""

from varco_serve.grammar.errors import GrammarError
from varco_serve.grammar.grammars import Grammars

__all__ = ["GrammarError", "Grammars"]
