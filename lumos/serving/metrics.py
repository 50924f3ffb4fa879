"""What Prometheus may ask: requests by route, method and status, how long they took, and the state of queue, worker and store."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lumos import __version__
from lumos.serving.access import App, Message, Receive, Send
from lumos.serving.service import Service

METHODS = ("GET", "POST", "DELETE")  # labels are kept for ever, and a method is whatever a stranger calls it
SECONDS = (0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Metrics(Collector):
    """Reads the service when asked; counts requests as ASGI middleware (`around`)."""

    def __init__(self, service: Service) -> None:
        self.service, self.registry = service, CollectorRegistry()
        self.registry.register(self)
        labels = ("method", "route", "status")
        self.requests = Counter("lumos_http_requests", "answered requests", labels, registry=self.registry)
        self.seconds = Histogram("lumos_http_seconds", "time until an answer began", ("route",), registry=self.registry)
        spans = {"made": "seconds of making a batch", "waited": "seconds that a request waited in the queue"}
        self.spans = {
            name: Histogram(f"lumos_{name}_seconds", words, buckets=SECONDS, registry=self.registry)
            for name, words in spans.items()
        }
        service.observed = lambda what, seconds: self.spans[what].observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        service, store, counts = self.service, self.service.store, self.service.counts
        about = GaugeMetricFamily("lumos_info", "version and model", labels=["version", "model"])
        about.add_metric([__version__, service.config.weights_name], 1)
        yield about
        videos = CounterMetricFamily("lumos_videos", "finished videos, by outcome", labels=["outcome"])
        for outcome in ("completed", "failed", "cancelled"):
            videos.add_metric([outcome], counts[outcome])
        yield videos
        yield CounterMetricFamily("lumos_refused_requests", "requests answered with an error", counts["refused"])
        yield CounterMetricFamily("lumos_worker_restarts", "times the worker was started again", counts["restarts"])
        gauges = {
            "lumos_queue_waiting": ("requests that wait", len(service.queue)),
            "lumos_batch_size": ("requests being made now", len(service.running.ids) if service.running else 0),
            "lumos_worker_ready": ("1 if the model is loaded", service.ready),
            "lumos_stored_videos": ("videos known", len(store.known)),
            "lumos_stored_bytes": ("bytes of finished videos", sum(store.sizes.values())),
        }
        for name, (words, value) in gauges.items():
            yield GaugeMetricFamily(name, words, float(value))

    def around(self, app: App) -> App:
        async def counted(scope: Message, receive: Receive, send: Send) -> None:
            begin = time.perf_counter()

            async def watch(message: Message) -> None:
                if message["type"] == "http.response.start":
                    # a route's pattern, known once it has been found, never the path, which a stranger may have made up
                    route = getattr(scope.get("route"), "path", "other")
                    method = scope["method"] if scope["method"] in METHODS else "other"
                    self.requests.labels(method, route, message["status"]).inc()
                    self.seconds.labels(route).observe(time.perf_counter() - begin)
                await send(message)

            await app(scope, receive, watch)

        return counted
