"""The equilibrium campaign's training side: estimators, the contraction controller, the trainer, experiments (third seed)."""
