"""An audit of a model of the user's own against its true gradient."""
