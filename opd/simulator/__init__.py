"""The request-level simulator and the Gymnasium environments built on it."""
