"""Watches answers from their question to their end, for the log line and the metrics."""

from __future__ import annotations

from collections.abc import Callable

from varco_serve.front.metrics import Metrics
from varco_serve.front.record import Record
from varco_serve.messages import Begun, Done, Event, Said


class Observer:
    """Watches all answers of a server.

    Args:
        metrics: Where the numbers go.
        clock: Seconds, which never go back.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.metrics = metrics
        self.clock = clock

    def asking(self, record: Record) -> Callable[[Event], None]:
        """Return what takes the events of one answer, which is asked for now.

        Args:
            record: Of the request that asks.
        """
        return _Answer(self, record).take

    def ended(self, record: Record, total_s: float) -> None:
        """Count a request that has ended.

        Args:
            record: The request's.
            total_s: How long it took.
        """
        metrics = self.metrics
        metrics.requests.labels(record.route or "none", record.status).inc()
        if record.status >= 400 or record.has_failed:
            metrics.refusals.labels(record.reason or "unknown").inc()
        if record.route.startswith("/v1/"):
            metrics.request_s.observe(total_s)


class _Answer:
    def __init__(self, observer: Observer, record: Record) -> None:
        self._metrics, self._clock, self._record = observer.metrics, observer.clock, record
        self._asked_s = self._clock()
        self._last_s: float | None = None

    def take(self, event: Event) -> None:
        now_s = self._clock()
        if isinstance(event, Begun):
            self._metrics.queue_s.observe(now_s - self._asked_s)
            if self._record.queue_s is None:
                self._record.queue_s = now_s - self._asked_s
        elif isinstance(event, Said):
            self._take_piece(now_s)
        elif isinstance(event, Done):
            self._take_end(event)

    def _take_piece(self, now_s: float) -> None:
        if self._last_s is not None:
            self._metrics.gap_s.observe(now_s - self._last_s)
        else:
            ttft_s = now_s - self._record.start_s
            self._metrics.ttft_s.observe(ttft_s)
            if self._record.ttft_s is None:
                self._record.ttft_s = ttft_s
        self._last_s = now_s

    def _take_end(self, event: Done) -> None:
        metrics, record = self._metrics, self._record
        usage, timings = event.document["usage"], event.document["timings"]
        record.prompt_tokens = (record.prompt_tokens or 0) + usage["prompt_tokens"]
        record.completion_tokens = (record.completion_tokens or 0) + usage["completion_tokens"]
        record.reason = event.document["finish_reason"]
        if record.content is not None:
            record.content["answers"].append(event.document["text"])
        metrics.prompt_tokens.inc(usage["prompt_tokens"])
        metrics.cached_tokens.inc(usage["cached_tokens"])
        metrics.completion_tokens.inc(usage["completion_tokens"])
        metrics.prefill_s.observe(timings["prefill_s"])
        metrics.decode_s.observe(max(0.0, timings["total_s"] - timings["ttft_s"]))
