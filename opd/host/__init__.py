"""The machine and its files: paths, documents, errors, archives, processes, polling."""
