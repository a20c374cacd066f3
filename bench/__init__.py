"""Benchmarks: ratios measured in one run on one machine, kept with hardware, versions and date (`make bench`)."""
