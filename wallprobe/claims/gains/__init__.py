"""The ledger of the study of gains."""
