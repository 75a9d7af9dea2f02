"""Loops that make runs, and their evaluation."""
