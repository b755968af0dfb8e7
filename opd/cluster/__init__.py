"""The pipeline on Kubernetes: manifests, the backend that reconfigures it, and the controller that runs in the cluster.

Needs the extras ``serving`` and ``cluster``; what only describes objects needs neither.
"""
