"""Backends that look at a deployed pipeline and change nothing: a preview of changes, and the shadow."""

from __future__ import annotations

from opd.cluster.backend import KubernetesBackend
from opd.cluster.deployed_state import targets
from opd.cluster.errors import ClusterError
from opd.cluster.manifests.workloads import replicas_of, with_replicas
from opd.cluster.resources import ObjectChange
from opd.control.loop import ApplyError, ObservationError
from opd.measurement import Observation
from opd.pipeline import Configuration, InfeasibleError, check_stage


class PreviewBackend(KubernetesBackend):
    """Prints what would change instead of changing it."""

    def apply(self, configuration: Configuration) -> None:
        """Print the difference as the cluster would accept it.

        Raises:
            ApplyError: always, so the running configuration goes on.
        """
        if configuration == self.configuration:
            return
        try:
            changes = self.preview(configuration)
        except ClusterError as error:
            raise ApplyError(f"dry run: the cluster would refuse it: {error}") from error
        print("".join(change.difference() for change in changes), flush=True)
        raise ApplyError("dry run: nothing was changed")

    def preview(self, configuration: Configuration) -> list[ObjectChange]:
        """Return every change that ``configuration`` would make; the cluster checks them without keeping them.

        Raises:
            ClusterError: if it refuses one.
        """
        changes: list[ObjectChange] = []
        wanted = targets(configuration)
        for key, found in sorted(self._state.workloads().items()):
            replicas = wanted.get(key, 0)
            if replicas_of(found) != replicas:
                self._state.scale(key, replicas, dry_run=True)
                changes.append(ObjectChange(found, with_replicas(found, replicas)))
        for n, stage in enumerate(configuration):
            changes.append(ObjectChange(self._state.stage(n), self._state.write(n, stage, dry_run=True)))
        return [change for change in changes if change.outcome == "changed"]


class ShadowBackend(KubernetesBackend):
    """Observes what runs, whoever decides it: variants and batch sizes in ConfigMaps, replicas as workloads ask for."""

    def observe(self) -> Observation:
        """Observe the pipeline as it is now.

        Raises:
            ObservationError: also if a stage runs no replica, or more than the pipeline may have.
        """
        try:
            self.configuration = self._scaled()
        except (ClusterError, InfeasibleError) as error:
            raise ObservationError(f"what runs cannot be seen: {error}") from error
        return super().observe()

    def apply(self, configuration: Configuration) -> None:
        """Change nothing.

        Raises:
            ApplyError: if that would have been a change.
        """
        if configuration != self.configuration:
            raise ApplyError("in shadow: nothing was changed")

    def _scaled(self) -> Configuration:
        workloads, stages = self._state.workloads(), []
        for n, stage in enumerate(self._state.read()):
            found = workloads.get((n, stage.variant))
            stages.append(stage._replace(replicas=0 if found is None else replicas_of(found)))
            check_stage(self.pipeline, self.pipeline.tasks[n], stages[-1])
        return tuple(stages)
