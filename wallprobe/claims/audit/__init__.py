"""The ledger of the audit study, which is of feedback alignment."""
