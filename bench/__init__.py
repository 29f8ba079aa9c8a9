"""Benchmarks, always beside a peer in the same run: `python -m bench roundtrip|tasks [--json FILE]`, inside `funcmq dev`."""
