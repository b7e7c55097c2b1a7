"""The jobs that commands and scripts ask for, one call each: read, transform, write, report.

Each job is a module of its own, so that a merge need not import what a conversion needs.
"""
