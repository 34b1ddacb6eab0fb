"""Parts that methods, tasks and training share: sites, segments, batches, statistics."""
