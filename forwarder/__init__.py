"""`funcmq serve`."""
