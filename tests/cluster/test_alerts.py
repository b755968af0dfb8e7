"""The alerts of a pipeline: they ask for what is exported, in PromQL, and the documentation says what to do."""

import re

import promql_parser
import pytest
from exported_metrics import series
from manifest_objects import FULL, PLAIN, ROOT, changed, find, objects_of

from opd.cluster.manifests.alerts import RUNBOOK
from opd.profiling.pipelines import load_pipeline

SETTINGS = {"a monitor": FULL, "plain": changed(PLAIN, alerts=True)}


def rules(wanted=FULL):
    (group,) = find(objects_of(settings=wanted), "PrometheusRule", "ocr")["spec"]["groups"]
    return group["rules"]


def parts(expression):
    """All expressions within one."""
    yield expression
    for name in ("lhs", "rhs", "expr", "vector_selector", "param"):
        inner = getattr(expression, name, None)
        if inner is not None and not isinstance(inner, str | float | int):
            yield from parts(inner)
    for argument in getattr(expression, "args", None) or []:
        yield from parts(argument)


def selectors(expression):
    return [each for each in parts(promql_parser.parse(expression)) if isinstance(each, promql_parser.VectorSelector)]


@pytest.mark.parametrize("wanted", SETTINGS.values(), ids=SETTINGS)
def test_every_expression_is_promql_about_series_that_exist_and_are_of_the_pipeline(wanted):
    known, asked = series(), set()
    for rule in rules(wanted):
        found = selectors(rule["expr"])
        assert len(found) == len(re.findall(r"\bopd_\w+", rule["expr"])) > 0
        for each in found:
            matchers = {matcher.name: matcher.value for matcher in each.matchers.matchers}
            assert matchers.keys() <= known[each.name]
            assert matchers["pipeline"] == "ocr"
            assert matchers.get("namespace") == wanted.series_labels.get("namespace")
            asked.add(each.name)
        for grouped in re.findall(r"by \((\w+)\)", rule["expr"]):
            assert all(grouped in known[each.name] for each in found)
    assert len(asked) >= 7


def test_broken_promql_is_seen():
    with pytest.raises(ValueError):
        promql_parser.parse(rules()[0]["expr"].replace("[", "", 1))


def test_the_documentation_has_a_line_for_each_alert_and_no_other():
    assert {rule["annotations"]["runbook"] for rule in rules()} == {RUNBOOK}
    path, _, anchor = RUNBOOK.partition("#")
    text = (ROOT / path).read_text()
    (section,) = re.findall(rf"^#+ {anchor}\n(.*?)(?=^#)", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert documented == [rule["alert"] for rule in rules()]
    assert f"](#{anchor})" in text.partition("## Troubleshooting")[2]


def test_alerts_know_the_service_level_and_the_number_of_gateways():
    level, by_name = load_pipeline("ocr").service_level, {rule["alert"]: rule for rule in rules()}
    late = by_name["OpdLatencyBeyondObjective"]
    assert (
        f"< {level.percentile / 100:g} *" in late["expr"] and f"{level.seconds:g} s" in late["annotations"]["summary"]
    )
    assert by_name["OpdGatewayMissing"]["expr"].endswith(f"< {FULL.gateways}")
    slow = {rule["alert"]: rule for rule in rules(changed(FULL, apply_seconds=600))}
    assert "[7m]" in by_name["OpdNoDecision"]["expr"] and "[21m]" in slow["OpdNoDecision"]["expr"]
    assert all(rule["labels"].keys() == {"severity", "namespace", "pipeline"} for rule in by_name.values())


def test_the_operator_finds_the_rules_by_the_labels_of_the_settings():
    assert find(objects_of(settings=FULL), "PrometheusRule", "ocr")["metadata"]["labels"]["release"] == "prometheus"
