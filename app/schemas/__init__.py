"""Bodies and answers of the HTTP edge."""
