"""Interchange between language models on pairs of prompts."""
