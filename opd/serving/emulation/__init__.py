"""Emulated replicas: they take the profiled time of their batches, and no cores.

Many of them run in one process, each a gRPC server of its own that speaks the protocol of a real replica. So every
pipeline with a profile runs on the real serving plane of a small machine. Whatever is emulated says so: the pipeline is
named ``<name>-emulated``, also in metrics and reports, and answers are of version ``emulated``.
"""
