"""From bytes to conversations: input files, their encodings and plain copies, rows of each file form, forms of rows."""
