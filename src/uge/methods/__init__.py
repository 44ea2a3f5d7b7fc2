"""Methods: everything that perturbs images."""
