"""Runs of the wall's task: conditions, signals, recipes, the loop, the sweep over many."""
