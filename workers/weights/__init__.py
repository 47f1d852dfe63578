"""Weight publishing: buckets, transports, receivers and the check after each publish."""
