"""How loud each sub-layer is, and the law of it over size."""
