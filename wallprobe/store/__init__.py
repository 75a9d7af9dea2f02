"""What is written, how, and how it is found again: runs, results, manifests."""
