"""Published recipes as YAML files."""
