"""Data with its exact targets."""
