"""Analysis of the results: confidence, frontier, ablations, robustness."""
