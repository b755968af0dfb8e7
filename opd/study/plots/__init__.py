"""Figures of profiles, workload, training and evaluation, and their common style."""
