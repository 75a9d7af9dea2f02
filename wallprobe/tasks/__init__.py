"""Data with its exact targets: the recurrence, its variants, and the registry that finds them by name."""
