"""Gradient estimators, and the networks they train."""
