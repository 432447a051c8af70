"""What goes in, validated: sequences, documents, alignments, trees, tables. Everything from models upward imports it."""
