"""Open pictures safely, decide their layout once, cut their pixels."""
