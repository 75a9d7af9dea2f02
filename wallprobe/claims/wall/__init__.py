"""The ledger of the study of the wall."""
