"""The request-level simulator and the environments built on it."""
