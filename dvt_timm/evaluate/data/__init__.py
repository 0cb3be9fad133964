"""The benchmarks' folders as map-style data sets."""
