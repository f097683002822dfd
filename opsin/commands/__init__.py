"""The commands of `opsin.cli`, by what they are about."""
