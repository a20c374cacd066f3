"""What every part stands on: errors, the console, processes, files, registries, provenance."""
