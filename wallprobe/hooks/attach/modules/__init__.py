"""Hook modules: context managers that attach to a model, follow any forward pass of it, and leave no hook behind."""
