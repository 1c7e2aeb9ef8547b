"""A bundle over HTTP, and as the scoring script of a managed endpoint: the same runtime, the same cells."""
