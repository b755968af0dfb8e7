"""Options of the command line: their names, types, defaults and help.

A dataclass groups the options that several commands share. :func:`expanded` makes one option of each of its fields.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from opd.control import DECISION_SHARE, DEPLOYABLE_POLICIES


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise typer.BadParameter(f"{text} s is not within 0..86400")
    return value


def _address(text: str) -> tuple[str, int] | None:
    if text == NO_PAGE:
        return None
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 65_536):
        raise typer.BadParameter(f"{text} is no HOST:PORT such as {PAGE}, with port 0 for any free one, nor {NO_PAGE}")
    return host, int(port)


PAGE, NO_PAGE = "127.0.0.1:8090", "none"
"""Where the page of the live view is by default, and the word for no page."""

Text = str | None
File = Path | None
Switch = bool | None

DryRun = Annotated[bool, Option("--dry-run", help="Show what would change, change nothing.")]
Wait = Annotated[float, Option(parser=_seconds, metavar="SECONDS", help="For pods, at most.")]
Page = Annotated[
    Any,  # host and port, or None; Typer takes the type from the parser
    Option(
        "--view",
        parser=_address,
        metavar="HOST:PORT",
        help=f"Of the page with the live view; {NO_PAGE} for no page. It has no login: whoever reaches it sees it.",
    ),
]
Stage = Annotated[
    list[str] | None,
    Option(
        metavar="TASK=VARIANT:REPLICAS:BATCH",
        help="Configuration of a stage; may be repeated. By default the stages of a running pipeline stay as they are, "
        "and those of a new one begin with one replica of the smallest variant.",
    ),
]


Namespace = Annotated[str, Option("--namespace", "-n", help="Of all objects; there is no default.")]
Context = Annotated[Text, Option(help="Of the kubeconfig (default: its current one).")]
Kubeconfig = Annotated[Text, Option(metavar="FILE", help="Default: as kubectl, or the pod's own account.")]
SOURCE = "A project folder, a pipeline file, or the name of a shipped pipeline"


@dataclass(frozen=True)
class Place:
    """A pipeline and where it is."""

    pipeline: Annotated[str, Argument(metavar="PIPELINE", help=f"{SOURCE}.")]
    namespace: Namespace
    context: Context = None
    kubeconfig: Kubeconfig = None


@dataclass(frozen=True)
class Places:
    """Pipelines and where they are."""

    pipelines: Annotated[
        list[str], Argument(metavar="PIPELINE...", help=f"{SOURCE}; several share the cores of a device.")
    ]
    namespace: Namespace
    context: Context = None
    kubeconfig: Kubeconfig = None

    def each(self) -> list[Place]:
        """The place of every pipeline."""
        return [Place(name, self.namespace, self.context, self.kubeconfig) for name in self.pipelines]


@dataclass(frozen=True)
class SettingsOptions:
    """A file of settings, and settings that take precedence over it; those that are None are not given."""

    settings: Annotated[
        File,
        Option(
            metavar="FILE",
            help="YAML file of settings (default: cluster.yaml beside the pipeline); options take precedence.",
        ),
    ] = None
    image: Annotated[Text, Option(help="Of all containers, with tag or digest.")] = None
    store: Annotated[Text, Option(metavar="URL", help="Model store as pods see it, such as s3://bucket/store.")] = None
    overlay: Annotated[File, Option(metavar="FILE", help="YAML file of changes to the pods.")] = None
    flavour: Annotated[Text, Option(help="deployment (default) or seldon.")] = None
    pull_policy: Annotated[Text, Option(help="Always, IfNotPresent (default) or Never.")] = None
    emulated: Annotated[Switch, Option(help="Emulated replicas: small pods that take the profiled times.")] = None
    storage_secret: Annotated[Text, Option(metavar="NAME", help="Secret with the credentials of the store.")] = None
    pod_monitor: Annotated[Switch, Option(help="For the Prometheus operator.")] = None
    monitoring_label: Annotated[
        list[str] | None, Option(metavar="KEY=VALUE", help="Of PodMonitor and PrometheusRule; may be repeated.")
    ] = None
    dashboard: Annotated[Switch, Option(help="ConfigMap for Grafana's sidecar.")] = None
    network_policy: Annotated[Switch, Option(help="Allow only needed traffic.")] = None
    istio_gateway: Annotated[Text, Option(metavar="[NAMESPACE/]NAME", help="Through which requests arrive.")] = None
    istio_host: Annotated[Text, Option(help="Host name of requests at the gateway (default: any).")] = None


@dataclass(frozen=True)
class RunOptions:
    """Options of a controller's run; a path that is None means a file of the project."""

    policy: Annotated[
        str, Option(metavar="NAME", help=f"{', '.join(DEPLOYABLE_POLICIES)}, or a class of yours, module:Class.")
    ] = "agent"
    decision_share: Annotated[
        float, Option(min=0.001, max=1.0, help="Of the interval that a decision of module:Class may take.")
    ] = DECISION_SHARE
    agent: Annotated[
        File, Option(metavar="FILE", help="Trained agent (default: models/agents/PIPELINE/POLICY-0.npz or as shipped).")
    ] = None
    forecaster: Annotated[File, Option(metavar="FILE", help="Default: models/forecaster.npz.")] = None
    params: Annotated[File, Option(metavar="FILE", help="Weights and times (default: params.yaml).")] = None
    prometheus: Annotated[Text, Option(metavar="URL", help="Default: OPD_PROMETHEUS_URL of the environment.")] = None
    cores: Annotated[
        int | None, Option(min=1, help="Of the device that pipelines share (default: those in the pipeline files).")
    ] = None
    interval: Annotated[
        float | None, Option(parser=_seconds, metavar="SECONDS", help="Between decisions (default: that of --params).")
    ] = None
    decisions: Annotated[int | None, Option(min=1, metavar="N", help="After which to end (default: never).")] = None
    seed: Annotated[int, Option(help="Of policy random.")] = 0
    port: Annotated[int, Option(help="Of health and metrics, 0 for any free one.")] = 8080
    view: Page = PAGE
    read_nodes: Annotated[bool, Option("--read-nodes", help="Respect nodes' free cores; needs a ClusterRole.")] = False
    record: Annotated[File, Option(metavar="FILE", help="Append every decision to it, a line of JSON each.")] = None
    dry_run: DryRun = False
    shadow: Annotated[
        bool,
        Option(
            "--shadow",
            help="Beside whatever scales the pipeline: decide and change nothing, and in the end report what would "
            "have happened (--record, --report).",
        ),
    ] = False
    report: Annotated[File, Option(metavar="FILE", help="Page of --shadow (default: beside the record).")] = None


def expanded(command: Callable[..., int]) -> Callable[..., int]:
    """Return a command with the fields of its dataclass parameters as parameters of its own, as Typer needs them."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if is_dataclass(group := parameter.annotation):
            groups[parameter.name] = group
            parameters += inspect.signature(group, eval_str=True).parameters.values()  # type: ignore[arg-type]
        else:
            parameters.append(parameter)

    def grouping(**values: Any) -> int:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        return command(**values)

    grouping.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    grouping.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    grouping.__name__, grouping.__doc__ = command.__name__, command.__doc__
    return grouping
