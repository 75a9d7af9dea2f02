"""The ledger of the equilibrium study, which is of equilibrium propagation."""
