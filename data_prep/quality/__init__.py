"""What rows are checked for: filters, personal data, duplicates, overlap, language, task type. It reads no file."""
