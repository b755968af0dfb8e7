"""These tests need optional extras of the package."""

from importlib.util import find_spec

NEEDED = ("mlserver", "matplotlib")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]
