"""What a server counts, in Prometheus' form.

Enters: what happened. Leaves: the text of `/metrics`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import prometheus_client

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PREFIX = "distill_sbs"


class Measures:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()

        def name(of: str) -> str:
            return f"{_PREFIX}_{of}"

        self._requests = prometheus_client.Counter(
            name("requests"), "Requests answered.", ["path", "status"], registry=self._registry
        )
        self._seconds = prometheus_client.Histogram(
            name("request_seconds"),
            "From a request's head to its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._inputs = prometheus_client.Counter(
            name("inputs"), "Inputs decoded.", ["task"], registry=self._registry
        )
        self._cut = prometheus_client.Counter(
            name("inputs_cut"), "Inputs longer than the student reads.", registry=self._registry
        )
        self._batches = prometheus_client.Histogram(
            name("batch_inputs"),
            "Inputs of a batch.",
            ["task"],
            buckets=_SIZES,
            registry=self._registry,
        )
        self._decoding = prometheus_client.Histogram(
            name("batch_seconds"),
            "Of a batch's decoding.",
            ["task"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Registers what tells how many inputs wait."""
        gauge = prometheus_client.Gauge(
            f"{_PREFIX}_inputs_waiting", "Inputs that wait.", registry=self._registry
        )
        gauge.set_function(count)

    def note_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer; `path` is one of the server's, lest a client make up others."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def note_batch(self, task: str, size: int, seconds: float) -> None:
        """Counts a batch that was decoded."""
        self._inputs.labels(task).inc(size)
        self._batches.labels(task).observe(size)
        self._decoding.labels(task).observe(seconds)

    def note_cut(self, count: int) -> None:
        """Counts inputs whose end was left out."""
        self._cut.inc(count)

    def write(self) -> bytes:
        """The text of `/metrics`."""
        return cast(bytes, prometheus_client.generate_latest(self._registry))
