"""What every process shares: settings, errors, states, database, storage, queue. Knows no edge."""
