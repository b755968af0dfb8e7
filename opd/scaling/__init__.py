"""The decider for pipelines that something else serves: it decides the replicas of all stages together.

Serving planes such as KServe, Ray Serve or plain Deployments change neither variants nor batch sizes while they run, so
these stay as they are, and :mod:`opd.solvers.replicas` plans replicas for the variants that run.
"""
