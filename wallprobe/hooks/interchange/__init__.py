"""One network's activation in another: which answer comes out."""
