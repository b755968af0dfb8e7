"""A user's project: the folder of one pipeline, its template, its checks and its stages."""
