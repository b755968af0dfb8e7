"""Options of the command line: their types, names and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from opd.control import DEPLOYABLE_POLICIES


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise typer.BadParameter(f"{text} s is not within 0..86400")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise typer.BadParameter(f"{text} is not at least 1")
    return value


Text = str | None
File = Path | None
Switch = bool | None

Pipeline = Annotated[str, Option(metavar="NAME|FILE", help="Of the catalogue, or a YAML file that describes one.")]
Namespace = Annotated[str, Option(help="Of all objects; there is no default.")]
Context = Annotated[Text, Option(help="Of the kubeconfig (default: its current one).")]
Kubeconfig = Annotated[Text, Option(metavar="FILE", help="Default: as kubectl, or the pod's own account.")]

Settings = Annotated[File, Option(metavar="FILE", help="YAML file of settings; options take precedence.")]
Image = Annotated[Text, Option(help="Of all containers, with tag or digest.")]
Store = Annotated[Text, Option(metavar="URL", help="Model store as pods see it, such as s3://bucket/store.")]
Overlay = Annotated[File, Option(metavar="FILE", help="YAML file of changes to the pods.")]
Flavour = Annotated[Text, Option(help="deployment (default) or seldon.")]
PullPolicy = Annotated[Text, Option(help="Always, IfNotPresent (default) or Never.")]
StorageSecret = Annotated[Text, Option(metavar="NAME", help="Secret with the credentials of the model store.")]
PodMonitor = Annotated[Switch, Option("--pod-monitor/--no-pod-monitor", help="For the Prometheus operator.")]
MonitoringLabel = Annotated[
    list[str] | None, Option(metavar="KEY=VALUE", help="Of the PodMonitor; may be repeated.", show_default=False)
]
Dashboard = Annotated[Switch, Option("--dashboard/--no-dashboard", help="ConfigMap for Grafana's sidecar.")]
NetworkPolicy = Annotated[Switch, Option("--network-policy/--no-network-policy", help="Allow only needed traffic.")]
IstioGateway = Annotated[Text, Option(metavar="[NAMESPACE/]NAME", help="Through which requests arrive.")]
IstioHost = Annotated[Text, Option(help="Host name of requests at the gateway (default: any).")]

DryRun = Annotated[bool, Option("--dry-run", help="Show what would change, change nothing.")]
Wait = Annotated[float, Option(parser=_seconds, metavar="SECONDS", help="For pods, at most.")]
Stage = Annotated[
    list[str] | None,
    Option(
        metavar="TASK=VARIANT:REPLICAS:BATCH",
        help="Configuration of a stage; may be repeated. By default the stages of a running pipeline stay as they are, "
        "and those of a new one begin with one replica of the smallest variant.",
    ),
]

Policy = Annotated[str, Option(help=f"{', '.join(DEPLOYABLE_POLICIES)}.")]
Agent = Annotated[File, Option(metavar="FILE", help="Trained agent (default: models/agents/PIPELINE/agent-0.npz).")]
Forecaster = Annotated[File, Option(metavar="FILE", help="Default: models/forecaster.npz.")]
Params = Annotated[File, Option(metavar="FILE", help="Weights and times (default: params.yaml).")]
Prometheus = Annotated[Text, Option(metavar="URL", help="Default: OPD_PROMETHEUS_URL of the environment.")]
Interval = Annotated[
    float | None, Option(parser=_seconds, metavar="SECONDS", help="Between decisions (default: that of --params).")
]
Decisions = Annotated[int | None, Option(parser=_count, metavar="N", help="After which to end (default: never).")]
Seed = Annotated[int, Option(help="Of policy random.")]
Port = Annotated[int, Option(help="Of health and metrics, 0 for any free one.")]
ReadNodes = Annotated[bool, Option("--read-nodes", help="Respect the nodes' free cores; needs a cluster role.")]
