"""Prompts to tokens, tokens to features."""
