"""Traces of requests per second, evaluation cycles and the load forecast."""
