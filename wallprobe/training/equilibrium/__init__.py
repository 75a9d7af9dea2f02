"""The equilibrium campaign's training side: estimators, the contraction controller, the trainer, experiments (the equilibrium study)."""
