"""What Prometheus may ask: requests by route, method and status, how long they took, and the state of queue, worker and store."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from lumos import __version__

if TYPE_CHECKING:
    from lumos.serving.pool import Worker

METHODS = ("GET", "POST", "DELETE")  # labels are kept for ever, and a method is whatever a stranger calls it
SECONDS = (0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Metrics:
    """Counters and histograms for whoever has something to count."""

    def __init__(self, model: str) -> None:
        self.registry = to = CollectorRegistry()
        self.requests = Counter("lumos_http_requests", "answered requests", ("method", "route", "status"), registry=to)
        self.seconds = Histogram("lumos_http_seconds", "time until an answer began", ("route",), registry=to)
        self.refused = Counter("lumos_refused_requests", "requests answered with an error", registry=to)
        self.videos = Counter("lumos_videos", "finished videos, by outcome", ("outcome",), registry=to)
        for outcome in ("completed", "failed", "cancelled"):
            self.videos.labels(outcome)  # there from the start
        self.restarts = Counter("lumos_worker_restarts", "times a worker was started again", ("worker",), registry=to)
        self.ready = Gauge("lumos_worker_ready", "1 if the worker holds the model", ("worker",), registry=to)
        self.batch = Gauge("lumos_batch_size", "requests that the worker makes now", ("worker",), registry=to)
        self.made = Histogram("lumos_made_seconds", "seconds of making a batch", buckets=SECONDS, registry=to)
        self.waited = Histogram("lumos_waited_seconds", "seconds that a request waited", buckets=SECONDS, registry=to)
        Gauge("lumos_info", "version and model", ("version", "model"), registry=to).labels(__version__, model).set(1)

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        Gauge(f"lumos_{name}", meaning, registry=self.registry).set_function(read)

    def watch(self, worker: "Worker") -> None:
        """Tell what a worker does, from the start."""
        self.restarts.labels(worker.number)
        self.ready.labels(worker.number).set_function(worker.ready.is_set)
        self.batch.labels(worker.number).set_function(lambda: len(worker.making.jobs) if worker.making else 0)

    def count(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """An answered request. Its route is the pattern that was found, never the path, which a stranger may have made up."""
        route = getattr(scope.get("route"), "path", "other")
        self.requests.labels(scope["method"] if scope["method"] in METHODS else "other", route, status).inc()
        self.seconds.labels(route).observe(seconds)
        self.refused.inc(status >= 400)
