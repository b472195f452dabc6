"""Declarations installed with the package: clusters, runs, length tables. Read through importlib.resources; no code."""
