"""Benchmarks: what a step, its objectives, its input and its start-up cost, each against what it cannot do without.

Layer 5: imports the engine and below. Each file has one function `run(...) -> Bench`. Ratios within one run are the
result; seconds hold for the machine named in the report.
"""
