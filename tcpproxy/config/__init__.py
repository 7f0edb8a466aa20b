"""What a proxy is told: its options, checked and converted."""
