"""`funcmq serve`: front door (HTTP), store, result forwarder, RabbitMQ's questions."""
