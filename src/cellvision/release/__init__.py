"""From a bundle to what is in production: a registry with a gate, deployments that can go back, a chain of steps."""
