"""States and attention of any decoder on text: what needs no exact answer."""
