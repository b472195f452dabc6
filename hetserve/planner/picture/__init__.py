"""A plan as a picture: what is where in the cluster, and who sends to whom. SVG as text, written by hand, no library."""
