"""Several jobs in one forward against the same jobs one after another."""
