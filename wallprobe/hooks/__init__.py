"""Instruments: each attaches to one or two models and returns a Result."""
