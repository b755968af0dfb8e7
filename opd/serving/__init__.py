"""The serving plane: model replicas as MLServer processes, a gateway in front of them, and their monitoring.

Needs the extra ``serving``. The same runtimes serve on one machine and in the pods of a cluster.
"""
