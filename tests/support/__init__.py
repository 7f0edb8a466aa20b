"""What tests share. Tests import from the modules, each about one thing."""
