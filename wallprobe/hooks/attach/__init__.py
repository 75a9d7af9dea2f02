"""What every instrument stands on: hooks that are attached and counted, sites, stacks, passes from the middle, prompts and subjects."""
