"""What people see of the bytes that pass: recordings, dumps."""
