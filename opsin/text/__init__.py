"""Tokenizer, chat templates, and rendering: a conversation becomes ids and a loss mask together."""
