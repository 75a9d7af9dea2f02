"""A wallprobe plugin to copy: a file for each of its parts. docs/plugins.md walks through it."""
