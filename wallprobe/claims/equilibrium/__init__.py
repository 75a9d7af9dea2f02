"""The ledger of the study of equilibrium propagation."""
