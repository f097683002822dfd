"""Pages a person looks at: the run report and its plots."""
