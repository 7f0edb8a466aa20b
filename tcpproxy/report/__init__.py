"""What a proxy reports: event records of the core become events, log lines and logging records."""
