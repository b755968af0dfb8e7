"""A scaler for KEDA (keda.sh): it asks over gRPC for the replicas of each stage, which are decided together.

Every stage has a ScaledObject whose trigger names the task. KEDA makes an autoscaler of it that asks here and divides
the answer by the target of 1, so the answer is the number of replicas.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from opd.host.errors import reason_of
from opd.scaling import keda_messages as messages
from opd.scaling.decider import ReplicaDecider

logger = logging.getLogger(__name__)

METRIC = "opd-replicas"
TASK = "task"
"""Entry of a trigger's metadata with the name of the task."""


class KedaScaler:
    """The methods that KEDA calls for a trigger of type ``external``.

    Args:
        decider: decides the replicas.
    """

    def __init__(self, decider: ReplicaDecider) -> None:
        self._decider = decider

    def is_active(self, reference: Any, context: grpc.ServicerContext) -> Any:
        """Whether the stage may run at all: always, since a pipeline without one of its stages answers nothing."""
        self._task(reference, context)
        return messages.IsActiveResponse(result=True)

    def metric_spec(self, reference: Any, context: grpc.ServicerContext) -> Any:
        """The metric to scale by, and its target for one replica."""
        self._task(reference, context)
        spec = messages.MetricSpec(metricName=METRIC, targetSize=1, targetSizeFloat=1.0)
        return messages.GetMetricSpecResponse(metricSpecs=[spec])

    def metrics(self, request: Any, context: grpc.ServicerContext) -> Any:
        """The replicas of the stage; an error if there is no decision, so that KEDA applies its ``fallback``."""
        task = self._task(request.scaledObjectRef, context)
        try:
            replicas = self._decider.replicas()[task]
        except Exception as error:
            logger.warning("no decision", exc_info=True)
            context.abort(grpc.StatusCode.UNAVAILABLE, f"no decision: {reason_of(error)}")
        value = messages.MetricValue(metricName=METRIC, metricValue=replicas, metricValueFloat=float(replicas))
        return messages.GetMetricsResponse(metricValues=[value])

    def _task(self, reference: Any, context: grpc.ServicerContext) -> str:
        """The task of a ScaledObject; an error that lists the tasks if it names none."""
        task = str(reference.scalerMetadata.get(TASK, ""))
        if task not in self._decider.plan.tasks:
            known = ", ".join(self._decider.plan.tasks)
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"ScaledObject {reference.namespace}/{reference.name}: metadata {TASK!r} of the trigger is {task!r}; "
                f"it must be one of {known}",
            )
        return task


def serve(decider: ReplicaDecider, host: str, port: int) -> tuple[grpc.Server, int]:
    """Start a server; return it and its port, any free one for 0.

    Raises:
        OSError: if the port cannot be used.
    """
    scaler = KedaScaler(decider)
    methods: dict[str, tuple[Callable[..., Any], Any]] = {
        "IsActive": (scaler.is_active, messages.ScaledObjectRef),
        "GetMetricSpec": (scaler.metric_spec, messages.ScaledObjectRef),
        "GetMetrics": (scaler.metrics, messages.GetMetricsRequest),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(method, request.FromString, lambda answer: answer.SerializeToString())
        for name, (method, request) in methods.items()
    }
    # Without SO_REUSEPORT a port in use is an error.
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(messages.SERVICE, handlers),))
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port} ({error}); choose another --port") from error
    server.start()
    return server, bound
