"""Rules that judge a document by itself: its language, its quality, and whether it holds a part of an evaluation."""
