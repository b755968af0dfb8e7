"""These tests need optional extras of the package."""

from importlib.util import find_spec

NEEDED = {"test_*.py": ("mlserver", "matplotlib"), "test_deployed.py": ("kubernetes",)}
collect_ignore_glob = [files for files, modules in NEEDED.items() if not all(map(find_spec, modules))]
