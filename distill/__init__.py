"""Reproduces the tables of three papers on distilling language models (ABKD, MGSR, AKL)."""
