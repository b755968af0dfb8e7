"""docs/metrics.md against what gateways, replicas and controller export."""

import re

from exported_metrics import Exported, exported
from manifest_objects import ROOT

UNITS = {"requests", "calls", "decisions", "replicas", "cores", "requests/s", "s", "share", "ratio", "1", "0 or 1"}


def rows(heading):
    """Cells of the table under a heading."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    table = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert all(len(cells) == 5 and all(cells) for cells in table)
    return table


def test_the_page_lists_every_metric_as_it_is_exported_and_no_other():
    listed = [*rows("Gateways and replicas"), *rows("Controller")]
    documented = [Exported(name.strip("`"), kind, tuple(labels.split(", "))) for name, kind, labels, *_ in listed]
    assert sorted(documented) == sorted(exported().values())


def test_the_controller_has_a_table_of_its_own():
    assert all(re.match(r"`opd_(controller|decision)", name) for name, *_ in rows("Controller"))
    assert not any(re.match(r"`opd_(controller|decision)", name) for name, *_ in rows("Gateways and replicas"))


def test_units_are_those_of_the_names():
    for name, _, _, unit, _ in [*rows("Gateways and replicas"), *rows("Controller")]:
        assert unit in UNITS
        assert (unit == "s") == name.strip("`").endswith("_seconds")
