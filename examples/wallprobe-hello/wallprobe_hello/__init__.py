"""A wallprobe plugin to copy: `task`, `condition`, `instrument`, `exhibit` and `claims`, a file each. docs/plugins.md walks through it."""
