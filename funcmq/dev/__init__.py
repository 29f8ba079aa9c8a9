"""The private stack."""
