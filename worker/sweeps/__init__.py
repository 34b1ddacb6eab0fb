"""Going on with a sweep: which points come next, which trial is best, and how clearly."""
