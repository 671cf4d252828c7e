"""Near-duplicates and duplicate paragraphs, found by sorted files of keys, whatever the number of documents."""
