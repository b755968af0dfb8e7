"""A cluster on this machine: API server, kubelet and Prometheus over real HTTP."""
