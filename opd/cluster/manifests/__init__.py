"""Kubernetes objects of a pipeline: pure functions of the pipeline, its configuration and the settings.

Content and order of the objects depend on nothing else. Every variant that runs has a workload of its own, so a change
of variant looks the same in both flavours: one workload grows, the other goes.
"""
