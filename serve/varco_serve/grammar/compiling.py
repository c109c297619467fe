"""Grammars compiled on threads of their own, under limits and a deadline, and kept."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, TimeoutError

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from varco_serve.grammar.errors import GrammarBusyError, GrammarError, reason_of

MAX_KEPT = 8
MAX_AT_ONCE = 2
DEADLINE_S = 5.0
STACK_BYTES = 256 << 20
"""Of a compiling thread, taken as far as it is used: references nest, and each level is a call of the library. One that
runs out of stack would end the process."""
_starting = threading.Lock()


def limits() -> LLParserLimits:
    """Return llguidance's limits: a part of its defaults, since a step of one answer keeps all others waiting."""
    return LLParserLimits(
        max_items_in_row=4000,
        initial_lexer_fuel=100_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=50_000,  # 20 MB, for as long as a grammar is kept; a long string takes 25 for each token
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class Compiled:
    """Compiled grammars by their text, the latest used of them kept. Threads may share it.

    Args:
        tokenizer: The vocabulary.
        deadline_s: Seconds that a caller waits for one. What takes longer is finished in the background, within the
            limits, and kept for whoever asks again.

    Attributes:
        num_compiled: How many were compiled so far, those that failed included.
    """

    def __init__(self, tokenizer: LLTokenizer, deadline_s: float = DEADLINE_S) -> None:
        self._tokenizer = tokenizer
        self._deadline_s = deadline_s
        self._kept: OrderedDict[bytes, Future[LLMatcher]] = OrderedDict()
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE)
        self.num_compiled = 0

    def matcher(self, grammar: str) -> LLMatcher:
        """Return a matcher at the beginning of a grammar, for one answer.

        Raises:
            GrammarBusyError: Others are being compiled, and take long.
            GrammarError: llguidance refuses it, no answer begins by it, or it takes too long.
        """
        until = time.monotonic() + self._deadline_s
        found = self._find_or_start(grammar, until)
        try:
            return found.result(max(0.0, until - time.monotonic())).deep_copy()
        except GrammarError as error:
            raise type(error)(str(error)) from None  # the one that is kept would grow a traceback with each caller
        except TimeoutError:
            raise GrammarError(
                f"The grammar takes longer to compile than {self._deadline_s:g} s. Send a smaller one."
            ) from None

    def anew(self, grammar: str) -> LLMatcher:
        """Return a matcher of a grammar that is compiled anew, for this answer and those to come.

        Raises:
            GrammarError: As for `matcher`.
        """
        self._forget(grammar)
        return self.matcher(grammar)

    def _forget(self, grammar: str) -> None:
        with self._lock:
            self._kept.pop(_digest(grammar), None)

    def _find_or_start(self, grammar: str, until: float) -> Future[LLMatcher]:
        key = _digest(grammar)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        if not self._places.acquire(timeout=max(0.0, until - time.monotonic())):
            raise GrammarBusyError("Other grammars take long to compile. Ask again in a while.")
        with self._lock:
            found = self._kept.get(key)
            if found is not None:  # by another thread meanwhile
                self._places.release()
                return found
            found = self._kept[key] = Future()
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            self.num_compiled += 1
        self._start(grammar, found)
        return found

    def _start(self, grammar: str, found: Future[LLMatcher]) -> None:
        thread = threading.Thread(target=self._compile, args=(grammar, found), name="grammar")
        with _starting:
            before = threading.stack_size(STACK_BYTES)
            try:
                thread.start()
            except RuntimeError:  # no memory for its stack, or as many threads as the system allows
                self._places.release()
                self._forget(grammar)
                message = "No thread can be started to compile the grammar. Ask again later."
                found.set_exception(GrammarBusyError(message))
            finally:
                threading.stack_size(before)

    def _compile(self, grammar: str, found: Future[LLMatcher]) -> None:
        try:
            found.set_result(_matcher(self._tokenizer, grammar))
        except GrammarError as error:
            found.set_exception(error)
        except BaseException:  # a panic of the library is no Exception
            found.set_exception(GrammarError("The grammar cannot be compiled. Send another one."))
        finally:
            self._places.release()


def _digest(grammar: str) -> bytes:
    return hashlib.sha256(grammar.encode("utf-8", "surrogatepass")).digest()


def _matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Return a compiled grammar, whose first choice was made up already: many that explode do so there."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if matcher.is_error():
        raise GrammarError(f"The grammar is refused: {reason_of(matcher.get_error())}. Change it.")
    probe = matcher.deep_copy()
    probe.consume_tokens(probe.compute_ff_tokens())
    if not probe.is_stopped():
        probe.compute_bitmask()
    if probe.is_error():
        raise GrammarError(f"No answer begins by the grammar: {reason_of(probe.get_error())}. Change it.")
    return matcher
