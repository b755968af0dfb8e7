"""The machine and its files: paths, documents, archives, processes, polling."""
