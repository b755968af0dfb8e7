"""Pipelines and the figures of their variants: pipeline files, profiles, measuring."""
