"""All metrics of the serving plane; servers and readers share the names.

Plain ``prometheus_client``: without parallel workers MLServer exports only its own metrics. The collectors are defined
here because MLServer reimports the module of a runtime whenever it loads it, and a collector can only be registered
once per process. Names in capitals are those that readers query; the exported name of a counter also ends in
``_total``.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# Seconds, in steps of 25 % up to the age at which requests are dropped: a quantile read from the buckets is at most an
# eighth off.
LATENCY_BUCKETS = tuple(round(0.002 * 1.25**step, 6) for step in range(39)) + (float("inf"),)
LATE_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, float("inf"))
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, float("inf"))

PIPELINE = ("pipeline",)
STAGE = ("pipeline", "task")
MODEL = ("pipeline", "task", "variant")

# A request from end to end.
REQUESTS = "opd_requests"
ANSWERS = "opd_answers"
WITHIN = "opd_answers_within_objective"
LATENCY = "opd_latency_seconds"
# A stage and its queue.
STAGE_REQUESTS = "opd_stage_requests"
STAGE_ANSWERS = "opd_stage_answers"
STAGE_LATENCY = "opd_stage_latency_seconds"
STAGE_WAIT = "opd_stage_wait_seconds"
STAGE_SERVICE = "opd_stage_service_seconds"
STAGE_BATCH = "opd_stage_batch_requests"
STAGE_BATCHES = "opd_stage_batches"
STAGE_RETRIES = "opd_stage_retries"
STAGE_QUEUE = "opd_stage_queue_length"
STAGE_REPLICAS = "opd_stage_replicas"
# A replica.
MODEL_SECONDS = "opd_model_seconds"
EMULATED_LATE = "opd_emulated_late_seconds"

requests = Counter(REQUESTS, "requests that arrived", PIPELINE)
answers = Counter(ANSWERS, "requests that ended, by outcome", (*PIPELINE, "outcome"))
within = Counter(WITHIN, "requests completed within the latency of the service level", PIPELINE)
latency = Histogram(LATENCY, "seconds from arrival to answer, of completed requests", PIPELINE, buckets=LATENCY_BUCKETS)

stage_requests = Counter(STAGE_REQUESTS, "requests that joined the stage", STAGE)
stage_answers = Counter(STAGE_ANSWERS, "requests that left the stage, by outcome", (*STAGE, "outcome"))
stage_latency = Histogram(STAGE_LATENCY, "seconds in the stage, waiting and service", STAGE, buckets=LATENCY_BUCKETS)
stage_wait = Histogram(STAGE_WAIT, "seconds in the queue", STAGE, buckets=LATENCY_BUCKETS)
stage_service = Histogram(STAGE_SERVICE, "seconds of one call to a replica", MODEL, buckets=LATENCY_BUCKETS)
stage_batch = Histogram(STAGE_BATCH, "requests in one call to a replica", STAGE, buckets=BATCH_BUCKETS)
stage_batches = Counter(STAGE_BATCHES, "calls to a replica, by the number of requests", (*MODEL, "size"))
stage_retries = Counter(STAGE_RETRIES, "requests sent again because a replica failed", STAGE)
stage_queue = Gauge(STAGE_QUEUE, "requests waiting", STAGE)
stage_replicas = Gauge(STAGE_REPLICAS, "replicas that take work, or parts of them that this gateway uses", MODEL)

model_seconds = Histogram(MODEL_SECONDS, "seconds of one inference", MODEL, buckets=LATENCY_BUCKETS)
emulated_late = Histogram(
    EMULATED_LATE, "seconds that an emulated replica answers later than it should", MODEL, buckets=LATE_BUCKETS
)
