"""Rules that judge a document by itself: what language it is in, whether it is prose, whether an evaluation holds it."""
