"""The ledger of the study of feedback alignment."""
