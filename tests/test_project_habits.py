"""What a project needs that people join: forms, workflows, audit; all of it valid and consistent with the rest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from deadlines import PATIENCE

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "examples/README.md")
FORM_PARTS = {"textarea", "input", "markdown", "dropdown", "checkboxes"}


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_pages_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
    for line in text.splitlines():
        assert len(line) <= 200, line


def test_make_targets_and_folders_that_newcomers_are_told_of_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in set(re.findall(r"(?:pytest|python) (?:-q )?((?:tests|examples)/\S+)", text)):
        assert (ROOT / path.strip("`;")).exists(), path


def test_continuous_integration_runs_what_the_project_runs_and_builds_what_a_release_has():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = {name: "\n".join(step.get("run", "") for step in job["steps"]) for name, job in jobs.items()}
    assert commands["checks"].strip() == ".ci/run" and os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "pip wheel" in commands["wheel"] and "wheel.cdx.json" in commands["wheel"]
    assert "docker build -f deploy/Dockerfile" in commands["image"] and "image.cdx.json" in commands["image"]
    assert commands["docs"].strip() == "make docs"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_ask_for_no_more_rights_than_reading_and_end(workflow):
    content = yaml.safe_load(workflow.read_text())
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 120
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_issue_forms_are_complete():
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert len(forms) >= 2
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form.keys() >= {"name", "description", "body"}
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids)
        assert all(part["type"] in FORM_PARTS and part["attributes"]["label"] for part in form["body"])


def test_the_development_container_makes_the_environment_of_the_makefile():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    made = subprocess.run(
        [*container["postCreateCommand"].split(), "--dry-run", "--always-make"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert "pip install" in made.stdout


ADVISORY = """
id: TEST-1
details: Something is wrong in requests.
affected:
- package: {name: Requests, ecosystem: PyPI}
  ranges:
  - {type: ECOSYSTEM, events: [{introduced: "0"}, {fixed: 2.20.0}, {introduced: 2.30.0}, {last_affected: 2.31.0}]}
  versions: [2.25.0]
modified: "2024-10-10T00:00:00Z"
"""


def audit(folder: Path, pins: str) -> subprocess.CompletedProcess[str]:
    (folder / "constraints.txt").write_text(pins)
    (folder / "advisories").mkdir(exist_ok=True)
    command = [sys.executable, ROOT / "tools" / "audit.py", folder / "advisories"]
    return subprocess.run(
        [*command, "--constraints", folder / "constraints.txt"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(
    "version, affected",
    [("2.19.1", 1), ("2.20.0", 0), ("2.25.0", 1), ("2.29.0", 0), ("2.30.0", 1), ("2.31.0", 1), ("2.31.1", 0)],
)
def test_the_audit_finds_pins_within_the_ranges_of_advisories(tmp_path, version, affected):
    (tmp_path / "advisories").mkdir()
    (tmp_path / "advisories" / "one.yaml").write_text(ADVISORY)
    done = audit(tmp_path, f"# pins\nrequests=={version}\nother==1.0\n")
    assert done.returncode == affected, done.stderr
    assert (f"requests {version}: TEST-1" in done.stdout) == bool(affected)
    assert "2 pins, 1 advisories, the newest of 2024-10-10" in done.stdout


def test_the_audit_takes_the_events_of_a_range_in_any_order(tmp_path):
    (tmp_path / "advisories").mkdir()
    advisory = yaml.safe_load(ADVISORY)
    for affected in advisory["affected"]:
        for each in affected.get("ranges", ()):
            each["events"].reverse()
    (tmp_path / "advisories" / "one.json").write_text(json.dumps(advisory))
    found = {
        version: audit(tmp_path, f"requests=={version}\n").returncode for version in ("2.19.1", "2.20.0", "2.31.1")
    }
    assert found == {"2.19.1": 1, "2.20.0": 0, "2.31.1": 0}


def test_the_audit_ignores_withdrawn_advisories_and_needs_some(tmp_path):
    assert audit(tmp_path, "requests==2.19.1\n").returncode == 2
    (tmp_path / "advisories" / "one.yaml").write_text(ADVISORY + 'withdrawn: "2024-11-01T00:00:00Z"\n')
    assert audit(tmp_path, "requests==2.19.1\n").returncode == 2
    (tmp_path / "advisories" / "two.json").write_text(json.dumps(yaml.safe_load(ADVISORY)))
    assert audit(tmp_path, "requests==2.19.1\n").returncode == 1
