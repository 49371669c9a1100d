"""What reports are made of: certificates as one table, figures, words, and the panel that a stage brings."""
