"""Bytes <-> values: how weights are packed into fewer bits, one folder for each world of it."""
