"""What every ledger stands on: claims, the rules that judge them, the quantities and measurements they read, and how they are worded."""
