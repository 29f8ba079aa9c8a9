"""What travels, and where: messages and codec, topology, AMQP link, credentials, signing."""
