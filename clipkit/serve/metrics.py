"""What Prometheus reads at `/metrics`."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server: requests by route and status, seconds of requests and of the stages of a search, and how
    many queries were embedded together."""

    def __init__(self, rows: int, model: str, waiting: Callable[[], int]) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("clipkit_requests", "Requests answered.", ("route", "status"), registry=own)
        self.refused = Counter("clipkit_refused", "Requests turned away.", ("status",), registry=own)
        self.seconds = Histogram("clipkit_request_seconds", "Of a request.", ("route",), registry=own, buckets=SECONDS)
        self.stages = Histogram("clipkit_stage_seconds", "Of a stage of it.", ("stage",), registry=own, buckets=SECONDS)
        self.batches = Histogram("clipkit_batch_queries", "Searched together.", registry=own, buckets=SIZES)
        Gauge("clipkit_waiting_queries", "That wait for the model.", registry=own).set_function(waiting)
        Gauge("clipkit_rows", "Rows of the index.", registry=own).set(rows)
        Gauge("clipkit_model", "The model.", ("name",), registry=own).labels(model).set(1)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
