"""The ledger of the gains study."""
