"""Declarations installed with the package: clusters, runs, length tables, where public data is. Read through importlib.resources; no code."""
