"""From nets to bundles; nothing is imported here, so that one part does not load them all."""
