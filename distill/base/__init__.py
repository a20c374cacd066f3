"""What all other packages use: errors, the console, processes, files, registries, provenance."""
