"""Operator tables, the SNPE replica, and converters: one module per target family."""
