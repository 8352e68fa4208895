"""Data that several tests share: attacks and their answers."""
