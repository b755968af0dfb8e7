"""Pipelines and the figures of their variants: catalogue, pipeline files, latency profiles, measuring."""
