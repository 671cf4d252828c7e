"""Rules that judge a document by itself: its language, whether it is prose, whether an evaluation is in it."""
