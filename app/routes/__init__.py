"""Routes: one file a resource, thin over the services."""
