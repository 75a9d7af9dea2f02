"""The ledger: published figures and what is measured against them."""
