"""Times of GPU kernels and steps that other people measured and published, from a folder the user gives: one reader a collection."""
