"""`make gpu-check`: what a GPU is asked as soon as there is one: the kernels against their reference, then against the clock."""
