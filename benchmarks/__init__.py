"""Benchmarks: the four workloads, how their networks were trained, inputs real and generated."""
