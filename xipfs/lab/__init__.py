"""Policies without a mount. So far: what a mount's accesses are recorded as.

trace    traces as Parquet files
"""
