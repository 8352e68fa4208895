"""Consumers in other languages, with the libraries they would use anyway."""
