"""The daemon on the computing site."""
