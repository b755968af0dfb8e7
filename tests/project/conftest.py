"""Fixtures of the tests of projects, which need the extra ``serving``."""

from importlib.util import find_spec

NEEDED = ("mlserver", "dvc", "papermill")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]
