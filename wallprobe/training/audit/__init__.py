"""The audit of a training method: what it uses as credit against the true gradient, while it trains (the audit study)."""
