"""The papers' claims, the experiments they are held against, and what came out."""
