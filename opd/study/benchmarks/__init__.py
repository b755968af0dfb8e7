"""Benchmarks against named peers: the same work, in the same run, with the same answers."""
