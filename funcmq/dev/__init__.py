"""The private stack of `funcmq dev`, tests and benchmarks, and its RabbitMQ node."""
