"""What smaller bases cost and bring: quality, bytes and latency."""
