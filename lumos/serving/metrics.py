"""What Prometheus may ask: requests by route, method and status, how long they took, and the state of queue, worker and store."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lumos.serving.engine import Engine
from lumos.serving.guard import App, Message, Receive, Send


class Metrics(Collector):
    """Reads the engine when asked; counts requests as ASGI middleware (`around`)."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.registry = CollectorRegistry()
        self.registry.register(self)
        labels = ("method", "route", "status")
        self.requests = Counter("lumos_http_requests", "answered requests", labels, registry=self.registry)
        self.seconds = Histogram("lumos_http_seconds", "time until an answer began", ("route",), registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        engine, store = self.engine, self.engine.store
        videos = CounterMetricFamily("lumos_videos", "videos that are over, by outcome", labels=["outcome"])
        for outcome in ("completed", "failed", "cancelled"):
            videos.add_metric([outcome], engine.counts[outcome])
        yield videos
        yield CounterMetricFamily("lumos_refused_requests", "requests answered with an error", value=engine.counts["refused"])
        yield CounterMetricFamily("lumos_worker_restarts", "times the worker was started again", value=engine.counts["restarts"])
        yield GaugeMetricFamily("lumos_queue_waiting", "requests that wait", value=len(engine.queue))
        yield GaugeMetricFamily(
            "lumos_batch_size", "requests being made now", value=len(engine.running.ids) if engine.running else 0
        )
        yield GaugeMetricFamily("lumos_worker_ready", "1 if the model is loaded", value=float(engine.ready))
        yield GaugeMetricFamily("lumos_stored_videos", "videos known", value=len(store.records))
        yield GaugeMetricFamily("lumos_stored_bytes", "bytes of finished videos", value=sum(store.sizes.values()))

    def around(self, app: App) -> App:
        async def counted(scope: Message, receive: Receive, send: Send) -> None:
            begin = time.perf_counter()

            async def watch(message: Message) -> None:
                if message["type"] == "http.response.start":
                    # a route's pattern, known once it has been found, never the path, which a stranger may have made up
                    route = getattr(scope.get("route"), "path", "other")
                    self.requests.labels(scope["method"], route, message["status"]).inc()
                    self.seconds.labels(route).observe(time.perf_counter() - begin)
                await send(message)

            await app(scope, receive, watch if scope["type"] == "http" else send)

        return counted
