"""funcmq."""
