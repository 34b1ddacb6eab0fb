"""The HTTP edge of the service. Never imports torch, a broker or SQL."""
