"""Is an estimated gradient the gradient, what does one step buy, what do branches add, how far back does a token matter."""
