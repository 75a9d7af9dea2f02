"""The built-in exhibits, one file a kind. They register under the entry-point group `wallprobe.exhibits`, as a plugin's do."""
