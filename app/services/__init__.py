"""What the HTTP edge does, callable without HTTP. Never commits."""
