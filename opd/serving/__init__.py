"""The serving plane: model replicas, stage queues and a router as MLServer processes, and their monitoring.

Needs the extra ``serving``. The same runtimes serve on one machine and in the pods of a cluster.
"""
