"""What Prometheus reads: a registry of the server's own, of what the front sees and of what the worker says."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from varco_serve.front.admission import Admission, num_slots
from varco_serve.messages import Model

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600, 1800)


class _ModelNumbers(Collector):
    """What the processes behind the front say, read when it is asked for."""

    def __init__(self, model: Model, admission: Admission) -> None:
        self._model = model
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        stats = self._model.stats
        waiting = max(stats.waiting, self._admission.num_answers - stats.running)  # those before the queue too
        for name, what, value in (
            ("answers_running", "Answers that have a slot.", stats.running),
            ("answers_waiting", "Answers that wait for one.", waiting),
            ("slots", "Answers that may run at once.", num_slots(self._model)),
            ("kv_tokens", "Tokens that the slots' caches hold.", stats.kv_tokens),
            ("kv_tokens_max", "Tokens that they have room for.", stats.kv_max_tokens),
            ("picture_cache_bytes", "Bytes that are kept of earlier pictures.", stats.kept_bytes),
            ("ready", "Whether questions are answered now.", float(self._model.not_ready is None)),
        ):
            yield GaugeMetricFamily(f"varco_{name}", what, value=value)
        for name, what, value in (
            ("picture_cache_hits", "Pictures whose tokens were kept from an earlier question.", stats.picture_hits),
            ("picture_cache_misses", "Pictures that were encoded.", stats.picture_misses),
            ("restarts", "Processes that were started again.", stats.restarts),
        ):
            yield CounterMetricFamily(f"varco_{name}", what, value=value)


class Metrics:
    """All of them; `text` is what `/metrics` answers.

    Args:
        model: What is asked for its numbers whenever somebody reads them.
        admission: Likewise.
    """

    def __init__(self, model: Model, admission: Admission) -> None:
        # Else a gauge beside every counter says when it began: a third of the text.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        registry.register(_ModelNumbers(model, admission))
        self.requests = Counter("varco_requests", "Requests that have ended.", ("route", "status"), registry=registry)
        self.refusals = Counter(
            "varco_refusals", "Requests that were refused or failed.", ("reason",), registry=registry
        )
        self.prompt_tokens = Counter("varco_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.cached_tokens = Counter(
            "varco_prefix_cache_hit_tokens", "Tokens of prompts that were in the cache already.", registry=registry
        )
        self.completion_tokens = Counter("varco_completion_tokens", "Tokens of answers.", registry=registry)
        self.ttft_s = self._seconds("time_to_first_token", "From a request's first byte to its answer's.", _LONG_S)
        self.gap_s = self._seconds("time_between_tokens", "Between two pieces of an answer.", _SHORT_S)
        self.queue_s = self._seconds("queue", "From a question to its place in the worker.", _LONG_S)
        self.prefill_s = self._seconds("prefill", "Of an answer's prompt, pictures apart.", _LONG_S)
        self.decode_s = self._seconds("decode", "From an answer's first token to its last.", _LONG_S)
        self.request_s = self._seconds("request", "From a request's first byte to its end.", _LONG_S)

    def text(self) -> bytes:
        """Return all values in Prometheus' text format."""
        return generate_latest(self._registry)

    def _seconds(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"varco_{name}_seconds", what, buckets=buckets, registry=self._registry)
