"""Subclasses: finer names of each class, asked of a language model, cleaned, filtered and read back as a label set."""
