"""Objects of users by reference, and the one form of the errors of all that cannot be imported."""

import json
import sys

import pytest

from opd.host.imports import import_object


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder in which one works."""
    (tmp_path / "params.yaml").touch()
    (tmp_path / "unfinished_of_imports.py").write_text("def (")
    (tmp_path / "leaving_of_imports.py").write_text("raise SystemExit(3)")
    (tmp_path / "silent_of_imports.py").write_text("raise ImportError")
    (tmp_path / "number_of_imports.py").write_text("number = 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # which importing extends


def test_objects_are_found_in_installed_modules_and_in_files_of_the_project(project):
    assert import_object("json:loads") is import_object("json.loads") is json.loads
    assert import_object("number_of_imports:number") == 3


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("nowhere:f", "No module named 'nowhere'"),
        ("json:nothing", "module 'json' has no attribute 'nothing'"),
        (":f", "ValueError: invalid format: ':f'"),
        ("unfinished_of_imports:f", "SyntaxError: invalid syntax (unfinished_of_imports.py, line 1)"),
        ("leaving_of_imports:f", "SystemExit: 3"),
        ("silent_of_imports:f", "ImportError"),
    ],
)
def test_whatever_cannot_be_imported_is_named_with_the_reason(project, reference, reason):
    with pytest.raises(ImportError) as error:
        import_object(reference)
    assert str(error.value) == f"{reference!r} cannot be imported: {reason}"
