"""What a model would say after each layer, in how many dimensions, and attention's restriction maps."""
