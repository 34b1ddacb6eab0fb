"""What default settings reach on real data."""
