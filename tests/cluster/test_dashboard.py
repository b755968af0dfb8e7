"""The Grafana dashboard."""

import json
import re

from exported_metrics import series
from manifest_objects import FULL, ROOT, find, objects_of

from opd.cluster.manifests.dashboard import dashboard, dashboard_text


def test_the_dashboard_file_is_up_to_date():
    assert (ROOT / "deploy" / "grafana" / "opd.json").read_text() == dashboard_text(), (
        "if this change is intended, run `python -m opd.cluster.manifests.dashboard > deploy/grafana/opd.json`"
    )


def test_the_dashboard_queries_only_metrics_that_exist():
    panels = dashboard()["panels"]
    asked = {word for panel in panels for target in panel["targets"] for word in re.findall(r"opd_\w+", target["expr"])}
    assert asked <= series().keys()
    assert len(asked) > 10
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)


def test_the_config_map_of_the_dashboard_has_the_label_that_grafana_looks_for():
    config = find(objects_of(settings=FULL), "ConfigMap", "ocr-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = config["data"].values()
    assert json.loads(text) == dashboard("ocr")
    assert dashboard("ocr")["uid"] != dashboard("video")["uid"]
