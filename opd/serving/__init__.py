"""The pipeline as real processes: model replicas, stage queues and a router on MLServer, and what watches them.

Needs the extra ``serving``. The same runtimes serve on one machine and in the pods of a cluster.
"""
