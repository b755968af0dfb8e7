"""Pipelines that ship with the package."""
