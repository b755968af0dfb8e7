"""Raw samples of a pipeline's metrics, from Prometheus or an embedded scraper, behind one interface.

Every source scrapes once a second and stores the time of each scrape, so that :mod:`opd.serving.telemetry` computes
rates and quantiles in the same way from all of them. Every sample has the label ``instance``, the name of its target,
and every scrape, failed or not, is a sample of the metric ``up``.
"""
