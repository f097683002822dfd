"""The nouns, errors, atomic files and hashes; imports nothing else of opsin."""
