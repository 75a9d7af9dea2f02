"""Linear probes: every layer, index and target in one solve."""
