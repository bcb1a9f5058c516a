"""Benchmarks: what a training step, its objectives, its input and its start-up cost; methods at equal CPU time.

Run from the root of a checkout: `python -m benchmarks step --json step.json`. Each module has one function
`run(...) -> Bench`. Ratios within one run are the result; seconds hold only for the machine named in the report.
"""
