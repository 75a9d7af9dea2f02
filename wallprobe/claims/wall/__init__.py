"""The ledger of the wall study."""
