"""Sources, examples, the plan (packs) and the loader."""
