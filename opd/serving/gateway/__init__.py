"""The gateway: one process in front of a pipeline.

It speaks the Open Inference Protocol over gRPC and HTTP, walks every request through the stages, holds the central
queue of each stage (:mod:`opd.serving.stage_queue`), and calls the replicas over persistent channels.
"""
