"""Example workloads: run them as files, or by name (`route run bench:matmul`)."""
