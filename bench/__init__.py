"""Benchmarks, always beside a peer in the same run: `python -m bench roundtrip|tasks|tunnel [--json FILE]`, inside `funcmq dev`."""
